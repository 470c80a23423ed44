"""Recipes: one module each, whose functions return plans: `vae` and `dit` to train, `curate` for footage."""
