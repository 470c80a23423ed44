"""Procedural 3-D tabletop worlds with exact ground truth: scenes, physics, renderer, captions and a verifier."""
