"""Causal video autoencoder: pixels to latents and back, streamed."""
