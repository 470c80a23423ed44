"""Clips become captions, and short prompts become captions of the kind that a model was trained on."""
