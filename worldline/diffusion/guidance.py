"""Classifier-free guidance: how the answers with and without the prompt are combined."""

from __future__ import annotations

import torch
from torch import Tensor


def cfg(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """uncond + scale (cond - uncond), its spread drawn back to that of `cond` (Ho & Salimans 2022, eq. 6).

    Args:
        cond, uncond: (B, ...) predictions with and without the prompt.
        scale: 1 is the conditional prediction alone.
        rescale: 0 to 1, how far each sample's standard deviation returns to that of `cond`; it undoes the
            overexposure of large scales (Lin et al. 2023, eqs. 15 and 16).
    """
    return _rescaled(uncond + scale * (cond - uncond), cond, rescale)


def _rescaled(guided: Tensor, cond: Tensor, rescale: float) -> Tensor:
    if rescale == 0:
        return guided
    axes = tuple(range(1, cond.dim()))
    factor = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp_min(1e-8)
    return guided * (rescale * factor + (1 - rescale))


def scale_at(t: float, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> float:
    """`scale` where t lies in the interval, else 1 (no guidance; Kynkaanniemi et al. 2024, eq. 6)."""
    low, high = interval
    return scale if low <= t <= high else 1.0


def cfg_text_image(
    cond: Tensor,
    no_text: Tensor,
    no_text_or_image: Tensor,
    text_scale: float,
    image_scale: float | Tensor,
    rescale: float = 0.0,
) -> Tensor:
    """Two scales, of the prompt and of what is known (Brooks et al. 2023, InstructPix2Pix, eq. 3; Open-Sora 2.0).

    no_text_or_image + image_scale (no_text - no_text_or_image) + text_scale (cond - no_text)

    Args:
        cond: (B, ...) predictions that see prompt and image.
        no_text: with the image, and the negative prompt for the prompt.
        no_text_or_image: with neither. Without known frames it equals `no_text`, and this is `cfg`.
        image_scale: a number, or a Tensor that broadcasts over the predictions, see `image_ramp`.
        rescale: as of `cfg`.
    """
    guided = no_text_or_image + image_scale * (no_text - no_text_or_image) + text_scale * (cond - no_text)
    return _rescaled(guided, cond, rescale)


def oscillating(scale: float, step: int, start: int = 10) -> float:
    """`scale`, but 1 in odd steps from `start` on (hpcaitech/Open-Sora, opensora/utils/sampling.py, for both scales).

    `step` counts from 0.
    """
    return 1.0 if step >= start and step % 2 else scale


def image_ramp(scale: float, step: int, steps: int, frames: int) -> Tensor:
    """(frames,) image scale of each latent frame at a step (hpcaitech/Open-Sora, opensora/utils/sampling.py).

    It rises evenly from 1 in the first frame, which is near the image anyway, to its height in the last; the height
    falls evenly from `scale` at step 0 to 1 at step `steps`, which is never taken. A `scale` that is 1 or less (see
    `oscillating`) holds for all frames. Used there for image to video only.
    """
    if scale <= 1:
        return torch.full((frames,), scale)
    return torch.linspace(1.0, 1 + (scale - 1) * (1 - step / steps), frames)
