"""Training: plans, an exactly resumable loop, and the tasks that train the VAE and the DiT."""
