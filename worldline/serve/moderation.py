"""Where an operator's own judgement of prompts and frames comes in; none is built in.

`--moderation package.module:name` names a callable without arguments that returns an object with the two methods of
`Moderator`. It is made once in every process that needs it. What it raises counts as a refusal: it fails closed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from worldline.errors import UserError


class Moderator(Protocol):
    def prompt(self, text: str) -> str | None:
        """Why a prompt is refused, in words for its writer, or None. Called in the API process before a job is
        accepted, also for the texts of a storyboard's cards."""

    def frames(self, frames: np.ndarray) -> str | None:
        """Why a finished video is refused, or None. Up to 16 evenly spaced frames, uint8 (T, H, W, 3); called in the
        engine before anyone can fetch the video, which is then thrown away."""


class Everything:
    """Lets all pass."""

    def prompt(self, text: str) -> str | None:
        return None

    def frames(self, frames: np.ndarray) -> str | None:
        return None


def moderator(name: str | None) -> Moderator:
    """The one of that name; raises UserError where there is none."""
    if name is None:
        return Everything()
    module, _, attribute = name.partition(":")
    try:
        make: Callable[[], object] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--moderation {name[:80]}: {error}; write package.module:name") from None
    return cast(Moderator, make())


def verdict(judge: Callable[[], str | None]) -> str | None:
    """What a moderator says; where it breaks, that it cannot tell."""
    try:
        return judge()
    except Exception as error:
        return f"it could not be examined ({type(error).__name__})"
