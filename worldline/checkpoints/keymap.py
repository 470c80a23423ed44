"""How a public checkpoint's tensors become ours and back: one table per family, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from worldline.checkpoints.folder import listed
from worldline.errors import UserError

Pack = Callable[[Sequence[Tensor]], Tensor]
Unpack = Callable[[Tensor], Sequence[Tensor]]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Entry:
    """One of our tensors, the names of theirs that it is made of, and how: `pack` and its inverse."""

    ours: str
    theirs: tuple[str, ...]
    pack: Pack
    unpack: Unpack


def same(ours: str, theirs: str) -> Entry:
    """Equal tensors under another name."""
    return Entry(ours, (theirs,), lambda parts: parts[0], lambda whole: [whole])


def linear(ours: str, *theirs: str, sizes: Sequence[int] | None = None) -> list[Entry]:
    """Matrices and biases whose outputs stand one after the other in ours; `sizes` as in `stacked`."""
    return [
        stacked(f"{ours}.{name}", *(f"{their}.{name}" for their in theirs), sizes=sizes) for name in ("weight", "bias")
    ]


def stacked(ours: str, *theirs: str, sizes: Sequence[int] | None = None) -> Entry:
    """Tensors one after the other along their first axis, of equal length unless `sizes` are given."""

    def unpack(whole: Tensor) -> Sequence[Tensor]:
        return whole.split(list(sizes)) if sizes else whole.chunk(len(theirs))

    return Entry(ours, theirs, lambda parts: torch.cat(list(parts)), unpack)


def then(entry: Entry, pack: Callable[[Tensor], Tensor], unpack: Callable[[Tensor], Tensor]) -> Entry:
    """An entry whose tensor is changed once more, by `pack` on the way in and `unpack` on the way out."""
    return Entry(
        entry.ours,
        entry.theirs,
        lambda parts: pack(entry.pack(parts)),
        lambda whole: entry.unpack(unpack(whole)),
    )


def each(entry: Entry, pack: Callable[[Tensor], Tensor], unpack: Callable[[Tensor], Tensor], parts: int) -> Entry:
    """An entry of which the first `parts` of their tensors are changed, by `pack` on the way in."""

    def inwards(found: Sequence[Tensor]) -> Tensor:
        return entry.pack([pack(part) if i < parts else part for i, part in enumerate(found)])

    def outwards(whole: Tensor) -> Sequence[Tensor]:
        return [unpack(part) if i < parts else part for i, part in enumerate(entry.unpack(whole))]

    return Entry(entry.ours, entry.theirs, inwards, outwards)


def to_ours(
    table: Iterable[Entry],
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    place: str,
    ignored: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Our tensors from theirs. Raises one UserError that lists all that is missing, unexpected or mis-shaped.

    Args:
        own: our tensors, on the meta device, say: their shapes tell what theirs must be.
        ignored: ends of names that are published but belong to nothing.
    """
    table = list(table)
    shapes = {name: part.shape for name, part in to_theirs(table, own).items()}
    found = {
        "missing": shapes.keys() - weights.keys(),
        "unexpected": {name for name in weights.keys() - shapes.keys() if not name.endswith(tuple(ignored))},
        "mis-shaped": {name for name in weights.keys() & shapes.keys() if weights[name].shape != shapes[name]},
    }
    if any(found.values()):
        told = "; ".join(f"{kind}: {listed(names)}" for kind, names in found.items() if names)
        raise UserError(f"--model {place} does not fit its config: {told}; copy the model again")
    return {entry.ours: entry.pack([weights[name] for name in entry.theirs]) for entry in table}


def loaded(
    build: Callable[[], Module],
    table: Iterable[Entry],
    weights: Mapping[str, Tensor],
    place: str,
    ignored: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> Module:
    """The module that `build` makes, frozen and in eval mode, with their weights in `dtype`, or as they are stored.

    Raises UserError as `to_ours`.
    """
    with torch.device("meta"):  # its own weights would only be thrown away
        module = build()
    ours = to_ours(table, weights, module.state_dict(), place, ignored)
    module.load_state_dict({name: value.to(dtype or value.dtype) for name, value in ours.items()}, assign=True)
    return module.eval().requires_grad_(False)


def to_theirs(table: Iterable[Entry], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_ours`."""
    out: dict[str, Tensor] = {}
    for entry in table:
        parts = entry.unpack(weights[entry.ours])
        out |= {name: part.contiguous() for name, part in zip(entry.theirs, parts, strict=True)}
    return out
