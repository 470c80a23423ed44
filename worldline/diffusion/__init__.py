"""Noise paths, timesteps, samplers and guidance; this package sees only `denoise(x, t)`."""
