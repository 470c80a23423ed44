"""Frames in pieces: exactly, where an output depends on a bounded neighbourhood, and else by cross-fading overlaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Work = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tile:
    """A rectangle of latent cells (rows, columns, each (first, stop)) and the wider one that it is computed from."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    wide_rows: tuple[int, int]
    wide_columns: tuple[int, int]

    @property
    def cells(self) -> int:
        """Cells that are computed."""
        (top, bottom), (left, right) = self.wide_rows, self.wide_columns
        return (bottom - top) * (right - left)

    def of(self, x: Tensor, per_cell: int) -> Tensor:
        """What is computed from, of frames (..., H, W) with so many values per cell along each axis."""
        (top, bottom), (left, right) = self.wide_rows, self.wide_columns
        return x[..., per_cell * top : per_cell * bottom, per_cell * left : per_cell * right]

    def put(self, made: Tensor, out: Tensor, per_cell: int) -> None:
        """The tile out of what was made of the wide rectangle, into frames `out` (..., H, W)."""
        down, right = self.rows[0] - self.wide_rows[0], self.columns[0] - self.wide_columns[0]
        y, x = (slice(per_cell * first, per_cell * stop) for first, stop in (self.rows, self.columns))
        height, width = y.stop - y.start, x.stop - x.start
        inner = made[..., per_cell * down :, per_cell * right :]
        out[..., y, x] = inner[..., :height, :width]


def tiles(height: int, width: int, side: int, reach: int) -> list[Tile]:
    """Tiles of at most `side` cells along each axis that fill a frame of so many cells, with `reach` more around each:
    exact where a value depends on no more than that."""

    def widened(span: tuple[int, int], size: int) -> tuple[int, int]:
        return max(0, span[0] - reach), min(size, span[1] + reach)

    rows, columns = spans(height, side), spans(width, side)
    return [Tile(y, x, widened(y, height), widened(x, width)) for y in rows for x in columns]


def spans(size: int, side: int) -> list[tuple[int, int]]:
    """(first, stop) of the fewest tiles of at most `side` that fill `size`, nearly equal; one where `side` is 0."""
    count = -(-size // side) if side else 1
    return [(size * i // count, size * (i + 1) // count) for i in range(count)]


# ---- approximately -------------------------------------------------------------------------------


def stride_of(size: int) -> int:
    """How far apart overlapping pieces of `size` begin: a quarter is shared, as diffusers does it."""
    return max(1, 3 * size // 4)


def crossfaded(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """`after`, whose first `extent` along `dim` come in over the last of `before`; fewer where one has fewer."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    if not extent:
        return after
    weight = torch.arange(extent, device=after.device) / extent
    weight = weight.to(after.dtype).view([-1 if axis == dim else 1 for axis in range(after.dim())])
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    faded = torch.lerp(old, after.narrow(dim, 0, extent), weight)
    return torch.cat([faded, after.narrow(dim, extent, after.shape[dim] - extent)], dim)


def blended(work: Work, x: Tensor, side: int, per_cell: tuple[int, int]) -> Tensor:
    """`work(x)` in overlapping tiles of `side` cells, each faded into those above and left of it: an approximation.

    `x` (B, C, T, H, W), `per_cell` the values of a cell along each axis of
    what goes in and of what comes out. A tile knows nothing of the frame outside it.
    """
    before, after = per_cell
    height, width = (size // before for size in x.shape[3:])
    if not side or max(height, width) <= side:
        return work(x)
    step, extent = stride_of(side), after * (side - stride_of(side))
    above: list[Tensor] = []
    strips = []
    for top in range(0, height, step):
        row: list[Tensor] = []
        for j, left in enumerate(range(0, width, step)):
            part = x[..., before * top : before * (top + side), before * left : before * (left + side)]
            tile = work(part)
            tile = crossfaded(above[j], tile, extent, 3) if above else tile
            row.append(crossfaded(row[-1], tile, extent, 4) if row else tile)
        strips.append(torch.cat([tile[..., : after * step, : after * step] for tile in row], dim=4))
        above = row
    return torch.cat(strips, dim=3)


def windows(pieces: Iterator[Tensor], length: int, step: int) -> Iterator[Tensor]:
    """Overlapping stretches (B, C, at most `length`, H, W) of a stream, beginning every `step` frames.

    A last one of a single frame is left out: that frame lies in the one before it.
    """
    held: Tensor | None = None
    first = True
    for piece in pieces:
        held = piece if held is None else torch.cat([held, piece], dim=2)
        while held.shape[2] >= length:
            yield held[:, :, :length]
            held, first = held[:, :, step:].clone(), False
    while held is not None and held.shape[2] > (0 if first else 1):
        yield held[:, :, :length]
        held, first = held[:, :, step:].clone(), False


def blended_in_time(
    work: Work, pieces: Iterator[Tensor], frames: int, temporal: int, decoding: bool
) -> Iterator[Tensor]:
    """A stream in overlapping stretches of `frames` latent frames and one before them, each faded into the last.

    What comes first of a stretch stands for the frame before it and is dropped, but for the first stretch's. An
    approximation: a stretch knows nothing of the video outside it.
    """
    step = stride_of(frames)
    before, after = (1, temporal) if decoding else (temporal, 1)
    last: Tensor | None = None
    for window in windows(pieces, before * frames + 1, before * step):
        made = work(window)
        if last is None:
            shown, last = made[:, :, : after * step + 1], made
        else:
            last = crossfaded(last, made[:, :, 1:], after * (frames - step), 2)
            shown = last[:, :, : after * step]
        yield shown
