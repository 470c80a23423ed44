"""Which timesteps training draws and sampling visits. t = 1 is pure noise, t = 0 is data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worldline.errors import UserError

Spacing = Literal["authors", "diffusers"]
"""Whose sigmas: a checkpoint's own repository, or the diffusers port of it."""


def logit_normal(n: int, generator: torch.Generator | None = None, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """(n,) timesteps, sigmoid of a normal (Esser et al. 2024, Stable Diffusion 3, sec. 3.1)."""
    return torch.sigmoid(torch.randn(n, generator=generator) * std + mean)


def shift(t: Tensor, shift: float | Tensor) -> Tensor:
    """Move timesteps towards noise: s t / (1 + (s - 1) t) (SD3, eq. 23); s = 1 changes nothing.

    Large latents keep their layout up to high noise, and only times near 1 teach it.
    """
    return shift * t / (1 + (shift - 1) * t)


def unshift(t: Tensor, value: float) -> Tensor:
    """Inverse of `shift`."""
    return shift(t, 1 / value)


def resolution_shift(tokens: int, base_tokens: int = 80, base_shift: float = 3.0) -> float:
    """Shift for a sample of `tokens` tokens: base_shift sqrt(tokens / base_tokens), at least 1 (SD3, eq. 23)."""
    if tokens < 1 or base_tokens < 1:
        raise UserError(f"tokens={min(tokens, base_tokens)}: a sample has at least 1 token")
    return max(1.0, base_shift * math.sqrt(tokens / base_tokens))


def schedule(steps: int, shift_by: float = 1.0) -> Tensor:
    """(steps + 1,) times from 1 down to 0, evenly spaced and then shifted."""
    if steps < 1:
        raise UserError(f"steps={steps}: at least 1 step is needed")
    return shift(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift_by).float()


def wan_schedule(steps: int, shift_by: float = 3.0, spacing: Spacing = "authors") -> tuple[Tensor, Tensor]:
    """Sigmas (steps + 1,) float32 from almost 1 to 0, and timesteps (steps,) int64 of 0 to 999, of Wan 2.1 and 2.2.

    The authors divide [0.999, 0] evenly and leave out the end before the shift (Wan-Video/Wan2.1,
    wan/utils/fm_solvers_unipc.py; diffusers 0.33 to 0.36 likewise). diffusers from 0.37 on divides [1, 0.001] and
    begins at 0.999999: other videos from the same noise. Timesteps are cut, not rounded, to integers, before the
    sigmas lose precision. For the authors' DPM-Solver++ take `schedule`: it begins at 1.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: at least 1 step is needed")
    if spacing not in ("authors", "diffusers"):
        raise UserError(f"spacing={spacing!r}: choose authors or diffusers")
    # NumPy's linspace and a float32 0.999, as there: other rounding cuts a timestep near an integer to another one.
    first, last = (float(np.float32(0.999)), 0.0) if spacing == "authors" else (1.0, 0.001)
    sigmas = shift(torch.from_numpy(np.linspace(first, last, steps + 1)[:-1]), shift_by)
    if spacing == "diffusers":
        sigmas[0] = 1 - 1e-6  # its solver steps in log(alpha / sigma), which does not exist at 1
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float(), (sigmas * 1000).long()


def at_timesteps(
    predict: Callable[[Tensor, Tensor], Tensor], sigmas: Tensor, timesteps: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """`predict(x, timestep ())` of a model that was taught timesteps, as the `denoise(x, sigma ())` that samplers call.

    sigmas (steps + 1,) or (steps,) and timesteps (steps,) of one schedule; other sigmas are not known to it.
    """
    known = {sigma: timesteps[i] for i, sigma in enumerate(sigmas[: len(timesteps)].tolist())}
    return lambda x, sigma: predict(x, known[float(sigma)].to(x.device))


def opensora_shift(tokens: int, frames: int) -> float:
    """Shift of the `schedule` of Open-Sora 2.0 (hpcaitech/Open-Sora, opensora/utils/sampling.py).

    A line through 1 at 256 tokens and 3 at 4096, times sqrt(frames); `tokens` are those of one latent frame, `frames`
    latent frames.
    """
    if tokens < 1 or frames < 1:
        raise UserError(f"tokens={tokens}, frames={frames}: a video has at least 1 of each")
    return (1 + (3 - 1) * (tokens - 256) / (4096 - 256)) * math.sqrt(frames)
