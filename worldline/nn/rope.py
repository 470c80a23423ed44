"""Rotary positions factorised over time, height and width, and the queries and keys that carry them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from worldline.errors import UserError
from worldline.nn.layers import inverse_rms


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


def _turn(x: Tensor) -> Tensor:
    """The other channel of each pair (i, i + D/2); its own inverse."""
    return x.roll(x.shape[-1] // 2, -1)


class _NormaliseRotate(Function):
    """Queries and keys out of one projection, normalised, gained and rotated; the values pass through.

    Written by hand because these passes over memory are, after the products themselves, the largest cost of a
    block on a CPU: the gain is folded into the tables, and the gradients of q, k and v meet in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, ...]:
        heads = qkv.shape[1] // 3
        rotated, kept = [], []
        for i in range(2):
            x = qkv[:, i * heads : (i + 1) * heads]  # (N, heads, D)
            scale = inverse_rms(x, eps)  # (N, heads, 1)
            y = x * scale
            c, s = cos * gain[i], sin * _turn(gain[i])  # (N, 1, D)
            rotated.append(torch.addcmul(y * c, _turn(y), s))
            kept += [y, scale, c, s]
        ctx.save_for_backward(gain, *kept)
        return rotated[0], rotated[1], qkv[:, 2 * heads :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gain, *kept = ctx.saved_tensors
        rows, heads, dim = kept[0].shape
        grad_qkv = kept[0].new_empty(rows, 3 * heads, dim)
        grad_gain = torch.empty_like(gain)
        for i in range(2):
            y, scale, c, s = kept[4 * i : 4 * i + 4]
            grad = torch.addcmul(_turn(grads[i] * s), grads[i], c)  # of y
            product = grad * y
            # grad holds the gain as a factor: the gradient of the gain is this sum without it.
            total = product.sum((0, 1), dtype=torch.float32)
            grad_gain[i] = torch.where(gain[i] == 0, 0, total / gain[i].float()).to(gain.dtype)
            along = product.sum(-1, keepdim=True) / -dim
            torch.mul(grad.addcmul_(y, along), scale, out=grad_qkv[:, i * heads : (i + 1) * heads])
        grad_qkv[:, 2 * heads :] = grads[2]
        return grad_qkv, grad_gain, None, None, None


def normalise_rotate(qkv: Tensor, gain: Tensor, rope: Rope, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with unit root mean square per head (QK-norm), times their gain, rotated by the tables.

    Args:
        qkv: (N, 3*heads, head_dim), all queries, then keys, then values.
        gain: (2, head_dim) of queries and of keys; a gain of exactly 0 stays there.
        rope: tables of the N tokens.

    Returns:
        q, k, v: (N, heads, head_dim) each.
    """
    q, k, v = _NormaliseRotate.apply(qkv, gain, rope.cos, rope.sin, eps)  # type: ignore[no-untyped-call]
    return q, k, v
