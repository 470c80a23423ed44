"""Which timesteps training draws and sampling visits. t = 1 is pure noise, t = 0 is data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldline.errors import UserError


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
