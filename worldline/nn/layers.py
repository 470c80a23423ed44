"""Small layers shared by the networks, written for few passes over memory: a CPU pays for every one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

# Enough to fill the products, few enough for what lies between them to stay near a core; a GPU wants more at once.
BAND_ROWS, BAND_ROWS_GPU = 1024, 16384
WIDENED = 2**24  # weights that are widened at once


def in_bands(f: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """f(*inputs) where every row of the outputs depends on the same row of the inputs alone.

    Without gradients so many rows go through `f` at a time, which takes less memory and no more time.
    """
    size = BAND_ROWS if inputs[0].device.type == "cpu" else BAND_ROWS_GPU
    if torch.is_grad_enabled() or len(inputs[0]) <= size:
        return f(*inputs)
    outputs: tuple[Tensor, ...] = ()
    for start in range(0, len(inputs[0]), size):
        band = slice(start, start + size)
        parts = f(*(rows[band] for rows in inputs))
        outputs = outputs or tuple(part.new_empty(len(inputs[0]), *part.shape[1:]) for part in parts)
        for whole, part in zip(outputs, parts, strict=True):
            whole[band] = part
    return outputs


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis: (..., 1) in x's type."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)


class _RMSNormalise(Function):
    """y = x / sqrt(mean(x^2) + eps) over the last axis, with a hand-written backward.

    `F.rms_norm` is composed of many upcasts on a CPU: 5.4 ms against 0.5 ms for 2560 x 256 bf16, both ways.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(x, eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True) / y.shape[-1]
        return torch.addcmul(grad, y, along, value=-1).mul_(scale), None


def layer_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Rows without their mean, of unit variance (Ba et al. 2016, eq. 4, without gain and bias). x: (..., D)."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def rms_normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each row by its root mean square (Zhang & Sennrich 2019, eq. 4, without gain). x: (..., D)."""
    if not torch.is_grad_enabled():  # a Function costs as much as the arithmetic of a short sequence
        return x * inverse_rms(x, eps)
    normalised: Tensor = _RMSNormalise.apply(x, eps)  # type: ignore[no-untyped-call]
    return normalised


class _GatherRows(Function):
    """rows = table[index]; its backward sums in fp32 through a matmul, where index_add rounds in bf16."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, one_hot: Tensor) -> Tensor:
        ctx.save_for_backward(one_hot)
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (one_hot,) = ctx.saved_tensors
        return one_hot.t() @ grads[0], None, None


class RowIndex:
    """Which row of a small table every token reads; built once per forward pass and shared by all blocks.

    Neighbours that read the same row form runs, and the longest length that divides all of them is read as one:
    a sample with one timestep costs one row, a sample whose first frame is known costs one row per frame.

    Args:
        index: (N,) integers in [0, rows).
        rows: number of rows of the tables this index will read.
        dtype: type of those tables.
    """

    # Beyond this many rows the one-hot matmul of the backward costs more than it saves.
    MAX_ONE_HOT_ROWS = 256

    def __init__(self, index: Tensor, rows: int, dtype: torch.dtype) -> None:
        runs = torch.unique_consecutive(index, return_counts=True)[1].tolist()
        index = index[:: math.gcd(*runs)]
        self.index = index
        self.one_hot: Tensor | None = None
        if rows <= self.MAX_ONE_HOT_ROWS and torch.is_grad_enabled():
            self.one_hot = torch.zeros(len(index), rows, dtype=dtype, device=index.device)
            self.one_hot.scatter_(1, index[:, None], 1.0)

    def gather(self, table: Tensor) -> Tensor:
        """table (rows, D) -> (runs, 1, D), to broadcast over the tokens of a run."""
        if self.one_hot is None:
            return table.index_select(0, self.index)[:, None]
        rows: Tensor = _GatherRows.apply(table, self.index, self.one_hot)  # type: ignore[no-untyped-call]
        return rows[:, None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """shift + x * scale (DiT, sec. 3.2; the caller has added the one to `scale`).

    x: (N, D); shift, scale: (runs, 1, D) from `RowIndex.gather`.
    """
    return torch.addcmul(shift, x.view(len(shift), -1, x.shape[-1]), scale).view(x.shape)


def add_gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y. x, y: (N, D); gate: (runs, 1, D)."""
    runs = (len(gate), -1, x.shape[-1])
    return torch.addcmul(x.view(runs), gate, y.view(runs)).view(x.shape)


def sinusoids(timestep: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of a timestep in [0, 1] (Vaswani et al. 2017, sec. 3.5, on 1000 t as in DDPM).

    timestep: (U,) float32.  Returns (U, width) float32: cosines, then sines.
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = 1000.0 * timestep.float()[:, None] * torch.exp(-math.log(max_period) * exponent)  # (U, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def wide_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """`linear` of few rows (U, in), in their type: weights of a narrower one are widened, so many at a time."""
    if x.dtype == linear.weight.dtype:
        return linear(x)  # type: ignore[no-any-return]
    rows = max(1, WIDENED // linear.in_features)
    made = [F.linear(x, weight.to(x.dtype)) for weight in linear.weight.split(rows)]
    return torch.cat(made, dim=1) + linear.bias


class Embedder(nn.Module):
    """A vector through two layers. (B, features) -> (B, width)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(features, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return wide_linear(F.silu(wide_linear(x, self.up)), self.down)


class TimestepEmbedding(Embedder):
    """Sinusoids through two layers. (U,) float -> (U, width) in `dtype`, or in the weights' own."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__(features, width)

    def forward(self, timestep: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return super().forward(sinusoids(timestep, self.up.in_features).to(dtype or self.up.weight.dtype))


class MLP(nn.Module):
    """Linear -> GELU -> Linear. (N, width) -> (N, out).

    Args:
        out: `width` unless given.
        approximate: "none" is the exact GELU, three times faster than "tanh" in bf16 on a CPU; public
            checkpoints were mostly trained with "tanh".
    """

    def __init__(
        self, width: int, hidden: int, approximate: str = "none", bias: bool = True, out: int | None = None
    ) -> None:
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, out or width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return in_bands(self._rows, x)[0]

    def _rows(self, x: Tensor) -> tuple[Tensor]:
        return (self.down(F.gelu(self.up(x), approximate=self.approximate)),)
