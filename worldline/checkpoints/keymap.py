"""How a public checkpoint's tensors become ours and back: one table per family, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from worldline.checkpoints.weights import MB, Weights, listed
from worldline.errors import UserError
from worldline.nn.hollow import bare

Pack = Callable[[Sequence[Tensor]], Tensor]
Unpack = Callable[[Tensor], Sequence[Tensor]]
Module = TypeVar("Module", bound=nn.Module)
LOT = 256 * MB  # of tensors that are read before their files are let go of


@dataclass(frozen=True)
class Entry:
    """One of our tensors, the names of theirs that it is made of, and how: `pack` and its inverse."""

    ours: str
    theirs: tuple[str, ...]
    pack: Pack
    unpack: Unpack


def renaming(patterns: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    """A function that rewrites names of tensors by every (regular expression, replacement) in turn."""

    def renamed(name: str) -> str:
        for pattern, new in patterns:
            name = re.sub(pattern, new, name)
        return name

    return renamed


def same(ours: str, theirs: str) -> Entry:
    """Equal tensors under another name."""
    return Entry(ours, (theirs,), lambda parts: parts[0], lambda whole: [whole])


def own(build: Callable[[], nn.Module]) -> list[Entry]:
    """The table of a module whose tensors are stored under their own names."""
    with bare():
        return [same(name, name) for name in build().state_dict()]


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


@contextmanager
def fitting(place: str | Path) -> Iterator[None]:
    """Whatever a config's values break while they are read is told as the config's fault."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--model {place}: its config has a value that cannot be ({reason}); copy it again") from None


def check_depth(layers: int, weights: Mapping[str, Tensor], place: str | Path) -> None:
    """Raises UserError for a config with more layers than there are tensors, before so many are built."""
    if layers > len(weights):
        raise UserError(f"--model {place}: its config has {layers} layers, and its files only {len(weights)} tensors")


@dataclass(frozen=True)
class Piece(Generic[Module]):
    """One part of a model before it is read: what its tensors are called there, and the module that they belong to.

    Attributes:
        place: what messages call it.
        build: makes the module; called on the meta device, since its own weights would only be thrown away.
        weights: their tensors by their names, usually `Weights`, which reads no data before `load`.
        table: all of our tensors.
        ignored: ends of names that are published but belong to nothing.
    """

    place: str
    build: Callable[[], Module]
    weights: Mapping[str, Tensor]
    table: Sequence[Entry]
    ignored: Sequence[str] = ()

    @property
    def shapes(self) -> Mapping[str, Tensor]:
        """Their tensors as far as shape and type go: nothing is read for them."""
        return self.weights.shapes if isinstance(self.weights, Weights) else self.weights

    def misfit(self) -> str:
        """All names that are missing, unexpected or mis-shaped, or of a type that is no weight; "" where it fits."""
        shapes = self.shapes
        foreign = self.weights.foreign if isinstance(self.weights, Weights) else {}
        with fitting(self.place):
            needed = {name: part.shape for name, part in to_theirs(self.table, self.empty().state_dict())}
        common = shapes.keys() & needed.keys()
        found = {
            "missing": needed.keys() - shapes.keys(),
            "unexpected": {n for n in shapes.keys() - needed.keys() if not n.endswith(tuple(self.ignored))},
            "mis-shaped": {f"{n} {tuple(shapes[n].shape)} for {tuple(needed[n])}"
                           for n in common if shapes[n].shape != needed[n]},
            "quantised or whole numbers, of which no weights are made": {f"{n} {foreign[n]}"
                                                                          for n in common & foreign.keys()},
        }  # fmt: skip
        return "; ".join(f"{kind}: {listed(names)}" for kind, names in found.items() if names)

    def load(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Module:
        """The module, frozen and in eval mode, with its weights in `dtype` and on `device`, or as they are stored.

        They are in memory once: in the files where they are taken as they are, and of what is made of others, those
        leave it in lots of `LOT` bytes. Raises UserError for a misfit.
        """
        check([self])
        module = self.empty()
        self.fill(module, dtype, device)
        return module

    def fill(self, module: Module, dtype: torch.dtype | None = None, device: torch.device | None = None) -> None:
        """Reads the weights into a module without any, as `load` does."""
        made: dict[str, Tensor] = {}
        shared: list[Entry] = []  # used where they lie in the file, so read last: until then it can be let go of
        lot = 0
        for entry in self.table:
            parts = [self.weights[name] for name in entry.theirs]
            value = entry.pack(parts).to(device, dtype)
            if _memory(value) in map(_memory, parts):
                shared.append(entry)
            else:
                made[entry.ours] = value
                lot += sum(part.nbytes for part in parts)
            del parts, value
            if lot > LOT:
                self._close()
                lot = 0
        self._close()
        made |= {entry.ours: entry.pack([self.weights[name] for name in entry.theirs]) for entry in shared}
        module.load_state_dict(made, assign=True)

    def _close(self) -> None:
        if isinstance(self.weights, Weights):
            self.weights.close()

    def empty(self) -> Module:
        """The module on the meta device: its config and shapes, and no weights; frozen and in eval mode."""
        with bare():
            return self.build().eval().requires_grad_(False)


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def check(pieces: Iterable[Piece[Any]]) -> None:
    """Raises one UserError that lists all that does not fit in any of the pieces; reads no tensors."""
    told = [f"{piece.place} does not fit its config: {misfit}" for piece in pieces if (misfit := piece.misfit())]
    if told:
        raise UserError(f"--model {'; '.join(told)}; copy the model again")


def to_theirs(table: Iterable[Entry], weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors, one after the other, each name once: the inverse of `Piece.load`."""
    told: set[str] = set()
    for entry in table:
        parts = zip(entry.theirs, entry.unpack(weights[entry.ours]), strict=True)
        yield from ((name, part.contiguous()) for name, part in parts if name not in told)
        told.update(entry.theirs)
