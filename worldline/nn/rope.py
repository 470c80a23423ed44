"""Rotary positions factorised over time, height and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from worldline.errors import UserError


class Rope(NamedTuple):
    """Tables of one packed sequence, both (N, 1, head_dim); `sin` carries the sign of its half."""

    cos: Tensor
    sin: Tensor


def rope_tables(coords: Tensor, axes: Sequence[int], theta: float, dtype: torch.dtype) -> Rope:
    """Tables that rotate axis a by coords[:, a] (RoFormer, eq. 15, a band of channels per axis).

    Args:
        coords: (N, A) coordinates in tokens, integer or fractional.
        axes: channels of each axis, even, summing to the head dimension.
        theta: base of the geometric frequencies.
        dtype: type of the tables; angles are always computed in float32.

    Raises:
        UserError: an odd number of channels, or as many axes as coordinates do not exist.
    """
    if len(axes) != coords.shape[-1] or any(a % 2 for a in axes):
        raise UserError(f"rope_axes={tuple(axes)}: give {coords.shape[-1]} even numbers of channels")
    angles = []
    for axis, channels in enumerate(axes):
        exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=coords.device) / max(channels, 1)
        angles.append(coords[:, axis, None].float() * theta**-exponent)  # (N, channels / 2)
    angle = torch.cat(angles, dim=-1)[:, None]  # (N, 1, head_dim / 2)
    cos, sin = angle.cos(), angle.sin()
    return Rope(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))


class _Rotate(Function):
    """Rotate pairs (i, i + D/2); the backward is the inverse rotation, so nothing but the tables is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, grad.roll(grad.shape[-1] // 2, -1), sin, value=-1), None, None


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Apply the tables to queries or keys. x: (N, heads, head_dim)."""
    rotated: Tensor = _Rotate.apply(x, rope.cos, rope.sin)  # type: ignore[no-untyped-call]
    return rotated
