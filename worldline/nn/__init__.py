"""Building blocks that every network shares: attention, rotary positions, norms and embeddings."""
