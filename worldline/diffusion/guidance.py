"""Classifier-free guidance: how the answers with and without the prompt are combined."""

from __future__ import annotations

from torch import Tensor


def cfg(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """uncond + scale (cond - uncond), its spread drawn back to that of `cond` (Ho & Salimans 2022, eq. 6).

    Args:
        cond, uncond: (B, ...) predictions with and without the prompt.
        scale: 1 is the conditional prediction alone.
        rescale: 0 to 1, how far each sample's standard deviation returns to that of `cond`; it undoes the
            overexposure of large scales (Lin et al. 2023, eqs. 15 and 16).
    """
    guided = uncond + scale * (cond - uncond)
    if rescale == 0:
        return guided
    axes = tuple(range(1, cond.dim()))
    factor = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp_min(1e-8)
    return guided * (rescale * factor + (1 - rescale))


def scale_at(t: float, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> float:
    """`scale` where t lies in the interval, else 1 (no guidance; Kynkaanniemi et al. 2024, eq. 6)."""
    low, high = interval
    return scale if low <= t <= high else 1.0
