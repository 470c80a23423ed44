"""Worldline: text to video in PyTorch, from raw footage to a trained, measured model.

Importing the package is free: torch is loaded only when a model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from worldline.generate.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path | None = None) -> Pipeline:
    """Load a text-to-video pipeline from a model folder or a hub id (org/name, org/name@revision).

    Without `path`, the model in the package. Raises `worldline.errors.UserError` when the model is missing, incomplete
    or none that is readable here.
    """
    from worldline.generate.load import load as load_pipeline

    return load_pipeline(path)
