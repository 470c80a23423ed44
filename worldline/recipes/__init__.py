"""Recipes: one module each, whose functions return plans: `vae` and `dit` for `worldline train`, `curate` for `worldline curate`."""
