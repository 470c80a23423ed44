"""A world that is driven: pushes over time are a condition beside text and pixels, and the model answers with what
follows from them, step after step in view of what it made before (Genie, Bruce et al. 2024; Sora's simulated games)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldline.errors import UserError
from worldline.generate.edit import asked
from worldline.generate.load import Deferred
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import check_prompt, check_range
from worldline.generate.result import Result
from worldline.worlds.scene import PUSHES

Pushes = Sequence[tuple[str, float]]
"""(direction of `PUSHES`, seconds), one after the other."""


def rollout(
    pipeline: Pipeline | Deferred, prompt: str, pushes: Pushes, image: np.ndarray | None = None, **settings: Any
) -> Result:
    """The thing of a world is pushed about; the video lasts as long as the pushes.

    Args:
        image: uint8 (h, w, 3), the first frame; the model draws it from the prompt unless given.

    Raises:
        UserError: a model that was not taught to be driven, or pushes that cannot be.
    """
    check_prompt(prompt)
    check_driven(pipeline)
    inputs = inputs_of(pushes, float(pipeline.defaults.fps))
    given = {name: value for name, value in asked(settings).items() if value is not None}
    # What there is to see is in the picture: without guidance a step is one pass instead of two.
    request = pipeline.request(prompt, **{"guidance_scale": 1.0, **given, "frames": len(inputs) + 1})
    if image is None:
        image = pipeline.run(pipeline.request(prompt, **{**given, "frames": 1})).frames[0]
    # Window after window unless another plan is asked for: no key frame can be drawn ahead of what leads to it.
    how = settings.get("long") or "auto"
    how = "sliding" if how == "auto" else how
    frames = np.stack(list(pipeline.reel.stretch(request, image, how, settings.get("progress"), inputs=inputs)))
    said = ",".join(f"{name}:{seconds:g}" for name, seconds in pushes)
    return Result([frames], request.fps, pipeline.record(request, verb="rollout", pushes=said), dict(pipeline.timings))


def check_driven(pipeline: Pipeline | Deferred) -> None:
    """Raises UserError for a model that was not taught to be driven."""
    if not pipeline.driven:
        raise UserError("--model was not taught to be driven; train one on clips with pushes (docs/training.md)")


def inputs_of(pushes: Pushes, fps: float) -> np.ndarray:
    """float32 (F, 2): what drives the world from each frame to the next, (right, toward)."""
    rows: list[tuple[float, float]] = []
    end = 0.0
    for name, seconds in pushes:
        if name not in PUSHES:
            raise UserError(f"--pushes {name[:20]!r}: unknown; one of {', '.join(PUSHES)}")
        check_range("--pushes", seconds, 1 / fps, 3600)
        end += seconds
        rows += [PUSHES[name]] * (round(end * fps) - len(rows))
    if not rows:
        raise UserError("--pushes names none; write for example right:0.5,none:0.25,away:1")
    return np.array(rows, np.float32)
