"""Scores for anyone's videos: quality against a reference, and obedience to the prompt by the worlds' verifier."""
