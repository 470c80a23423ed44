"""Raw footage to clips: probe, shots, bars, scores, duplicates; every decision becomes part of a row of the manifest.

Each file is decoded once, small, from start to end, and all stages share the frames (`examine.py`). A stage is a frozen
dataclass in a file of its own; a recipe chooses the stages and their order (`plan.py`).
"""
