"""Context parallelism: the tokens of one packed sequence on several processes, each with some of the attention heads.

Every process holds N / P tokens. Around self-attention tokens and heads are exchanged (all-to-all, DeepSpeed-Ulysses,
Jacobs et al. 2023, section 3.1), so that each process sees all tokens of its heads; everything else is done token by
token. Nothing is approximated: samples of any lengths may be cut anywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from worldline.errors import UserError
from worldline.nn.attention import Segments


class _Exchange(Function):
    """Rows to whom they belong: `sent[i]` go to process i, `got[i]` come from it. The backward sends gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.got, ctx.group = sent, got, group
        return exchanged(x, sent, got, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return exchanged(grads[0], ctx.got, ctx.sent, ctx.group), None, None, None


def exchanged(x: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup) -> Tensor:
    """Of the rows of x, `sent[i]` go to process i; from each come `got[i]`, in the order of processes."""
    out = x.new_empty(sum(got), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), got, sent, group=group)
    return out


class _Gather(Function):
    """Rows of all processes. Every process goes on with all of them and brings a gradient of its own for each, so the
    backward adds these up: it is the transpose of the gathering."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return exchanged(x.repeat(len(counts), *[1] * (x.dim() - 1)), [len(x)] * len(counts), counts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        own = ctx.counts[dist.get_rank(ctx.group)]
        parts = exchanged(grads[0], ctx.counts, [own] * len(ctx.counts), ctx.group)
        return parts.view(len(ctx.counts), own, *grads[0].shape[1:]).sum(0), None, None


class Shared(Segments):
    """The samples of a packed sequence as they lie on one process, of which each holds the rows counts[rank].

    Lengths are those of the own rows, so that text is attended to as ever; attention among tokens is spread.
    """

    def __init__(self, cu_seqlens: Tensor, counts: list[int], group: dist.ProcessGroup) -> None:
        rank = dist.get_rank(group)
        start = sum(counts[:rank])
        super().__init__((cu_seqlens - start).clamp(0, counts[rank]))
        self.whole = Segments(cu_seqlens)
        self.counts, self.group = counts, group

    def spread(self, attend: Callable[[Tensor, Tensor, Tensor, Segments], Tensor], *qkv: Tensor) -> Tensor:
        """attend(q, k, v, all samples) with all tokens of some heads; q, k, v and the result (n, heads, dim) of the own
        tokens."""
        size, own = len(self.counts), len(qkv[0])
        heads, dim = qkv[0].shape[1:]
        asked = torch.stack(qkv, 1).unflatten(2, (size, heads // size))  # (n, 3, P, heads / P, dim)
        asked = asked.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (P * n, 3, heads / P, dim)
        q, k, v = _Exchange.apply(asked, [own] * size, self.counts, self.group).unbind(1)  # type: ignore[no-untyped-call]
        mixed = attend(q, k, v, self.whole)  # (N, heads / P, dim)
        back = _Exchange.apply(mixed, self.counts, [own] * size, self.group)  # type: ignore[no-untyped-call]
        back = back.view(size, own, heads // size, dim).transpose(0, 1)
        return back.reshape(own, heads, dim)  # type: ignore[no-any-return]


def split_sequence(model: nn.Module, heads: int, group: dist.ProcessGroup) -> None:
    """From now on every process of `group` computes its share of the tokens of `model`, a transformer on packed tokens
    (`dit.model.DiT`) whose forward takes `tokens`, `cu_seqlens` and other rows of the tokens.

    All must call it with the same arguments; all get the whole result, and may go on with it as one process would.
    Raises UserError when the heads do not divide.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if heads % size:
        raise UserError(f"parallel.context: {size} processes cannot share {heads} heads")
    signature = inspect.signature(model.forward)
    counts: list[int] = []

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind(*args, **kwargs).arguments
        rows = len(given["tokens"])
        if rows < size:
            raise UserError(f"parallel.context: {size} processes cannot share {rows} tokens")
        ends = [rows * (i + 1) // size for i in range(size)]
        counts[:] = [b - a for a, b in pairwise([0, *ends])]
        for name, value in given.items():
            if name == "cu_seqlens":
                given[name] = Shared(value, list(counts), group)
            elif isinstance(value, Tensor) and len(value) == rows:
                given[name] = value[ends[rank] - counts[rank] : ends[rank]]
        return (), given

    def join(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        trace = kwargs.get("trace")
        if trace is not None:
            trace[:] = [_Gather.apply(states, list(counts), group) for states in trace]  # type: ignore[no-untyped-call]
        return _Gather.apply(out, list(counts), group)  # type: ignore[no-untyped-call, no-any-return]

    model.register_forward_pre_hook(cut, with_kwargs=True)
    model.register_forward_hook(join, with_kwargs=True)
