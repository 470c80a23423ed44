"""What sampling needs to know of a request, and how its scales of guidance change over the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from worldline.diffusion.guidance import image_ramp, oscillating, scale_at
from worldline.dit.conditions import Conditions, frames_to_tokens
from worldline.dit.patchify import Patch
from worldline.generate.request import Request, Sampling
from worldline.shapes import VideoShape

Progress = Callable[[int, int], None]
"""progress(done, total), called after every step of a sampler."""


@dataclass(frozen=True)
class Drawing(Sampling):
    """What sampling needs to know beside the prompts: the size too (divisible, see VideoShape.snapped).

    `strength`: 1 begins in noise; below, in what is to be changed with so much noise (SDEdit, Meng et al. 2021).
    """

    shape: VideoShape
    strength: float = 1.0

    @staticmethod
    def of(request: Request) -> Drawing:
        """The part of a request that sampling needs."""
        shared = {field.name: getattr(request, field.name) for field in fields(Sampling)}
        shared["prompt_suffix"] = request.prompt_suffix.replace("{fps}", f"{float(request.fps):g}")
        return Drawing(request.padded, **shared)


Scales = Callable[[float, float], tuple[float, float | Tensor]]
"""scales(t, scale of the prompt) -> what that is at t, and the scale of what is known: one, or (n, 1) of the tokens."""


def scales_of(drawing: Drawing, condition: Conditions, patch: Patch, times: Tensor) -> Scales:
    """How a drawing changes its scales over the `times` (steps,) that the model is asked at.

    Where guidance oscillates and pictures are known, first, last or both, the scale of what is known also rises from
    frame to frame (`image_ramp`), as Open-Sora 2.0 has it.
    """
    steps = {t: step for step, t in enumerate(times.tolist())}
    beside = 1.0
    if drawing.guidance_scale_image is not None and bool(condition.mask.any()):
        beside = drawing.guidance_scale_image
    pictures = not condition.mask[:, 1:-1].any()

    def scales(t: float, text: float) -> tuple[float, float | Tensor]:
        text, image = (scale_at(t, scale, drawing.guidance_interval) for scale in (text, beside))
        if not drawing.guidance_oscillation:
            return text, image
        text, image = (oscillating(scale, steps[t]) for scale in (text, image))
        if image <= 1 or not pictures:
            return text, image
        ramp = image_ramp(image, steps[t], drawing.steps, condition.mask.shape[1])
        return text, frames_to_tokens(ramp[:, None], condition.mask.shape, patch)

    return scales
