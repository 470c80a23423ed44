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
        dtype: type of the tables; angles are computed in float64 where the device has it.

    Raises:
        UserError: an odd number of channels, or as many axes as coordinates do not exist.
    """
    if len(axes) != coords.shape[-1] or any(a % 2 for a in axes):
        raise UserError(f"rope_axes={tuple(axes)}: give {coords.shape[-1]} even numbers of channels")
    exact = torch.float32 if coords.device.type == "mps" else torch.float64
    angles = []
    for axis, channels in enumerate(axes):
        exponent = torch.arange(0, channels, 2, dtype=exact, device=coords.device) / max(channels, 1)
        angles.append(coords[:, axis, None].to(exact) * theta**-exponent)  # (N, channels / 2)
    angle = torch.cat(angles, dim=-1)[:, None]  # (N, 1, head_dim / 2)
    cos, sin = angle.cos(), angle.sin()
    return Rope(torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype))


def sincos(coords: Tensor, width: int, dtype: torch.dtype, theta: float = 10_000.0) -> Tensor:
    """Fixed positions (N, width): sines and cosines of each of A coordinates (N, A) in its own band (Vaswani et al.
    2017, section 3.5, per axis as in MAE and DiT); channels that do not divide stay zero."""
    band = width // (2 * coords.shape[1])
    frequency = theta ** -(torch.arange(band, device=coords.device) / band)
    angle = coords[:, :, None].float() * frequency  # (N, A, band)
    out = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(out, (0, width - out.shape[1])).to(dtype)


def _turn(x: Tensor) -> Tensor:
    """The other channel of each pair (i, i + D/2); its own inverse."""
    return x.roll(x.shape[-1] // 2, -1)


def _rotated(
    qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """q, k, v as `normalise_rotate` gives them, and what the backward needs."""
    rows, heads, dim = len(qkv), qkv.shape[1] // 3, qkv.shape[2]
    x = qkv[:, : 2 * heads].unflatten(1, (2, heads))  # (N, 2, heads, D)
    scale = inverse_rms(x, eps)  # (N, 2, heads, 1)
    y = x * scale
    c = cos[:, None] * gain[:, None]  # (N, 2, 1, D)
    s = sin[:, None] * _turn(gain)[:, None]  # (N, 2, 1, D)
    q, k = torch.addcmul(y * c, _turn(y), s).unbind(1)
    return (q, k, qkv.view(rows, 3, heads, dim)[:, 2]), (y, scale, c, s)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x (N, ..., heads, head_dim) with the channels i and i + head_dim / 2 of each pair rotated by the tables."""
    shape = (len(x),) + (1,) * (x.dim() - 2) + x.shape[-1:]
    return torch.addcmul(x * rope.cos.view(shape), _turn(x), rope.sin.view(shape))


def _rotated_across(qkv: Tensor, gain: Tensor, rope: Rope, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`normalise_rotate` over all heads: gain (2, heads, head_dim)."""
    rows, heads, dim = len(qkv), qkv.shape[1] // 3, qkv.shape[2]
    x = qkv[:, : 2 * heads].reshape(rows, 2, heads * dim)
    y = (x * inverse_rms(x, eps)).view(rows, 2, heads, dim) * gain
    q, k = rotate(y, rope).unbind(1)
    return q, k, qkv[:, 2 * heads :]


class _NormaliseRotate(Function):
    """Queries and keys out of one projection, normalised, gained and rotated; the values pass through.

    Written by hand because these passes over memory are, after the products themselves, the largest cost of a
    block on a CPU: the gain is folded into the tables, and the gradients of q, k and v meet in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, ...]:
        out, saved = _rotated(qkv, gain, cos, sin, eps)
        ctx.save_for_backward(gain, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gain, y, scale, c, s = ctx.saved_tensors
        rows, _, heads, dim = y.shape
        grad_qkv = y.new_empty(rows, 3, heads, dim)
        grad_gain = torch.empty_like(gain)
        for i in range(2):
            grad = torch.addcmul(_turn(grads[i] * s[:, i]), grads[i], c[:, i])  # of y
            product = grad * y[:, i]
            # grad holds the gain as a factor: the gradient of the gain is this sum without it.
            total = product.sum((0, 1), dtype=torch.float32)
            grad_gain[i] = torch.where(gain[i] == 0, 0, total / gain[i].float()).to(gain.dtype)
            along = product.sum(-1, keepdim=True) / -dim
            torch.mul(grad.addcmul_(y[:, i], along), scale[:, i], out=grad_qkv[:, i])
        grad_qkv[:, 2] = grads[2]
        return grad_qkv.flatten(1, 2), grad_gain, None, None, None


def normalise_rotate(qkv: Tensor, gain: Tensor, rope: Rope, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with unit root mean square (QK-norm), times their gain, rotated by the tables.

    Args:
        qkv: (N, 3*heads, head_dim), all queries, then keys, then values.
        gain: of queries and of keys: (2, head_dim) normalises per head, and a gain of exactly 0 stays there;
            (2, heads, head_dim) normalises over all heads.
        rope: tables of the N tokens.

    Returns:
        q, k, v: (N, heads, head_dim) each.
    """
    if gain.dim() == 3:
        return _rotated_across(qkv, gain, rope, eps)
    if not torch.is_grad_enabled():
        return _rotated(qkv, gain, rope.cos, rope.sin, eps)[0]
    q, k, v = _NormaliseRotate.apply(qkv, gain, rope.cos, rope.sin, eps)  # type: ignore[no-untyped-call]
    return q, k, v
