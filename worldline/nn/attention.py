"""Attention over packed samples: the only module that knows which kernel runs where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

# On a CPU, scores of one head up to so many entries are stored; more are left to the fused kernel, which never does.
# Its backward is five times slower than storing short scores, its forward twice as fast from 128 x 128 on.
MAX_STORED_SCORES = {True: 1 << 20, False: 1 << 14}  # with gradients, and without


class Absent:
    """Places of a padded batch where no key stands. `where`: (b, m) bool."""

    def __init__(self, where: Tensor) -> None:
        self.where = where
        self._bias: dict[torch.dtype, Tensor] = {}

    @cached_property
    def back(self) -> Tensor:
        """Where each row that is there stands among all places, (n,)."""
        return (~self.where).flatten().nonzero()[:, 0]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(b, 1, 1, m) to add to scores: -inf where absent. Made once for all the blocks of a forward pass."""
        if dtype not in self._bias:
            zeros = torch.zeros(self.where.shape, dtype=dtype, device=self.where.device)
            self._bias[dtype] = zeros.masked_fill_(self.where, float("-inf"))[:, None, None]
        return self._bias[dtype]


class Segments:
    """Where each sample of a packed sequence begins and ends, read from the device once per forward pass.

    Args:
        cu_seqlens: (B+1,) cumulative lengths, from 0 to N.
    """

    def __init__(self, cu_seqlens: Tensor) -> None:
        self.device = cu_seqlens.device
        self.bounds: list[int] = cu_seqlens.tolist()
        self.lengths = [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        self._padding: dict[tuple[int, int], tuple[Tensor, Absent]] = {}

    def split(self, x: Tensor, runs: Sequence[tuple[int, int]]) -> Sequence[Tensor]:
        """Rows (N, ...) cut into those of each run (first, stop) of samples; the runs follow each other."""
        return x.split([self.bounds[stop] - self.bounds[first] for first, stop in runs]) if len(runs) > 1 else (x,)

    def spread(
        self, attend: Callable[[Tensor, Tensor, Tensor, Segments], Tensor], q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """attend(q, k, v, segments) among the rows themselves; a sequence that is shared with other processes
        (`parallel.context`) has another way to it."""
        return attend(q, k, v, self)

    def batch(self, x: Tensor, first: int, stop: int) -> tuple[Tensor, Absent | None]:
        """Rows (n, ...) of the samples first, ..., stop - 1 as one batch (b, longest, ...), and what is absent there.

        Absent places repeat the sample's last row, so that they hold finite numbers; they must not reach the loss.
        """
        lengths = self.lengths[first:stop]
        if len(set(lengths)) == 1:
            return x.unflatten(0, (stop - first, lengths[0])), None
        where, absent = self.padding(first, stop)
        rows: Tensor
        if torch.is_grad_enabled():
            rows = _PadRows.apply(x, where.flatten(), absent.back)  # type: ignore[no-untyped-call]
        else:
            rows = x.index_select(0, where.flatten())
        return rows.unflatten(0, where.shape), absent

    def padding(self, first: int, stop: int) -> tuple[Tensor, Absent]:
        """Row numbers (b, longest) of those samples, counted from their first, and what is absent."""
        if (first, stop) not in self._padding:
            bounds = torch.tensor(self.bounds[first : stop + 1], device=self.device) - self.bounds[first]
            count = bounds.diff()[:, None]
            place = torch.arange(max(self.lengths[first:stop]), device=self.device)[None]
            present = place < count
            where = bounds[:-1, None] + place.minimum(count - 1)
            self._padding[first, stop] = where, Absent(~present)
        return self._padding[first, stop]


class _PadRows(Function):
    """rows = x[where]; rows that stand for absent keys get no gradient, so the backward is a gather as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0].contiguous().index_select(0, back), None, None


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, in fp32 inside: on a CPU the bf16 forward is twice as slow as this."""
    return scores.float().softmax(-1).to(scores.dtype)


class _Softmax(Function):
    """`_softmax` with a backward in the scores' own type."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = _softmax(scores)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(grads[0], weights, -1, weights.dtype)


def as_segments(cu_seqlens: Tensor | Segments) -> Segments:
    """Segments of cumulative lengths; given Segments, those."""
    return cu_seqlens if isinstance(cu_seqlens, Segments) else Segments(cu_seqlens)


def reference(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor | None = None) -> Tensor:
    """Attention as the equation stands: softmax(q k^T / sqrt(d)) v, sample by sample (Vaswani et al., eq. 1).

    Shapes as in `attention`. A sample without keys gives zeros.
    """
    cu_k = cu_q if cu_k is None else cu_k
    out = []
    for i in range(len(cu_q) - 1):
        queries = q[cu_q[i] : cu_q[i + 1]].transpose(0, 1)  # (heads, n, dim)
        keys = k[cu_k[i] : cu_k[i + 1]].transpose(0, 1)  # (heads, m, dim)
        values = v[cu_k[i] : cu_k[i + 1]].transpose(0, 1)  # (heads, m, dim)
        weights = (queries @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        out.append((weights @ values).transpose(0, 1))
    return torch.cat(out)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor | Segments,
    cu_k: Tensor | Segments | None = None,
    scale: float | None = None,
    causal: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    """Attention inside each sample of a packed sequence.

    Neighbours of equal query length run as one batch, so samples of one size should lie side by side; keys of
    unequal length are padded inside it and masked.

    Args:
        q: (N, heads, dim) queries of all samples.
        k, v: (M, heads, dim) keys and values of all samples.
        cu_q: (B+1,) cumulative query lengths, or the `Segments` made from them.
        cu_k: the same for keys; None means those of the queries.
        scale: of the scores; None means 1 / sqrt(dim), 1.0 that the queries already carry it.
        causal: a query sees no key behind its own place; only where queries and keys are the same tokens.
        counts: (M,) how many equal keys each key stands for; None means one.

    Returns:
        (N, heads, dim). A sample without keys gives zeros.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_k is None:
        return as_segments(cu_q).spread(partial(_inside, scale=scale, causal=causal, counts=counts), q, k, v)
    return _inside(q, k, v, as_segments(cu_q), as_segments(cu_k), scale, causal, counts)


def _inside(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Segments,
    keys: Segments | None = None,
    scale: float = 1.0,
    causal: bool = False,
    counts: Tensor | None = None,
) -> Tensor:
    """`attention`, its samples known; without `keys` they are those of the queries."""
    keys = queries if keys is None else keys
    runs = _runs(queries, keys)
    out = []
    for number, (run, part_q, part_k, part_v) in enumerate(
        zip(runs, queries.split(q, runs), keys.split(k, runs), keys.split(v, runs), strict=True)
    ):
        if not len(part_q) or not len(part_k):
            out.append(torch.zeros_like(part_q))
            continue
        key, absent = keys.batch(part_k, *run)
        value, _ = keys.batch(part_v, *run)
        query = queries.batch(part_q, *run)[0]
        bias = None if absent is None else absent.bias(q.dtype)
        if counts is not None:
            # n equal keys add n times the same exponential: exp(s + log n).
            more = keys.batch(keys.split(counts, runs)[number], *run)[0].log().to(q.dtype)[:, None, None]
            bias = more if bias is None else bias + more
        out.append(_dense(query, key, value, bias, scale, causal).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def _runs(queries: Segments, keys: Segments) -> list[tuple[int, int]]:
    """(first, stop) of neighbouring samples with queries of equal length that all have keys, or all have none."""
    asked, told = queries.lengths, [min(length, 1) for length in keys.lengths]
    # Number by number: torch's compiler cannot hold tuples of lengths, or truth values, against each other.
    starts = [i for i in range(len(asked)) if i == 0 or asked[i] != asked[i - 1] or told[i] != told[i - 1]]
    return list(zip(starts, [*starts[1:], len(asked)], strict=True))


def _dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, causal: bool) -> Tensor:
    """One batch: q (b, n, heads, dim), k and v (b, m, heads, dim), bias (b, 1, 1, m) -> (b, n, heads, dim)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (b, heads, n, dim)
    if q.device.type != "cpu" or q.shape[2] * k.shape[2] > MAX_STORED_SCORES[torch.is_grad_enabled()]:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, is_causal=causal)
        return mixed.transpose(1, 2)
    scores = (q if scale == 1.0 else q * scale) @ k.transpose(-1, -2)  # (b, heads, n, m)
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    weights: Tensor = _Softmax.apply(scores) if torch.is_grad_enabled() else _softmax(scores)  # type: ignore[no-untyped-call]
    return (weights @ v).transpose(1, 2)
