"""Datasets of any make as clips with captions, their shards, and batches drawn from them."""
