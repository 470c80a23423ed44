"""Recipes: one module each, whose functions `vae` and `dit` return the plans that `worldline train` runs."""
