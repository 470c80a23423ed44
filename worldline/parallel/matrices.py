"""Work on whole matrices whose rows lie on several processes: each gathers some of them, and sends the rows back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from worldline.parallel.context import exchanged


def holders(tensor: Tensor) -> int:
    """Over how many processes the rows of a weight are spread."""
    return tensor.device_mesh.size(-1) if isinstance(tensor, DTensor) else 1


def on_wholes(
    owners: Sequence[Tensor], parts: Sequence[Tensor], shares: Sequence[Sequence[int]], work: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """`work` of every matrix, which keeps its shape; of the result this process gets the rows that it brought.

    All processes that share the rows must call it. Two exchanges move everything, so that a process holds no more
    numbers at a time than its parts and its share of the wholes.

    Args:
        owners: the model's weights, sharded along their rows, or whole.
        parts: what this process holds of a matrix of every owner, (rows, columns) where an owner is (all rows, ...).
        shares: of every process, the numbers of the matrices that it works on.
    """
    first = owners[0]
    if not isinstance(first, DTensor):
        return [work(part) for part in parts]
    group = first.device_mesh.get_group(first.device_mesh.ndim - 1)
    size, rank = len(shares), dist.get_rank(group)

    def rows(i: int, process: int) -> int:
        total = owners[i].shape[0]
        each = -(-total // size)  # what FSDP2 gives to every process but the last ones
        return min(total, (process + 1) * each) - min(total, process * each)

    sent = [[parts[i] for i in share] for share in shares]
    got = _swapped(sent, [[(rows(i, p), parts[i].shape[1]) for i in shares[rank]] for p in range(size)], group)
    made = [work(torch.cat(pieces)) for pieces in zip(*got, strict=True)]
    back = [list(whole.split([rows(i, p) for p in range(size)])) for i, whole in zip(shares[rank], made, strict=True)]
    sent = [[pieces[p] for pieces in back] for p in range(size)]
    got = _swapped(sent, [[tuple(parts[i].shape) for i in share] for share in shares], group)
    found = {i: part for share, pieces in zip(shares, got, strict=True) for i, part in zip(share, pieces, strict=True)}
    return [found[i] for i in range(len(parts))]


def _swapped(
    sent: list[list[Tensor]], shapes: Sequence[Sequence[tuple[int, ...]]], group: dist.ProcessGroup
) -> list[list[Tensor]]:
    """`sent[i]` go to process i; what comes from each, of the given shapes."""
    flat = [part.flatten() for parts in sent for part in parts]
    sizes = [[rows * columns for rows, columns in each] for each in shapes]
    counts = [sum(part.numel() for part in parts) for parts in sent]
    came = exchanged(torch.cat(flat), counts, [sum(each) for each in sizes], group)
    parts = iter(came.split([size for each in sizes for size in each]))
    return [[next(parts).view(shape) for shape in each] for each in shapes]
