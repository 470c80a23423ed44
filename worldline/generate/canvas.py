"""A video to be painted: which of its pixels are known, and what the model sees of that. Every edit is a canvas."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from worldline.errors import UserError
from worldline.shapes import Grid, VideoShape

FADE = 8  # frames over which the detail of a known frame is carried into painted ones
SAME = 6.0  # 8-bit levels: what differs by less from the known frame shows the same thing


@dataclass(frozen=True)
class Canvas:
    """`frames` uint8 (T, H, W, 3), of which the pixels in `known` bool (T, H, W) stand; the rest may hold anything."""

    frames: np.ndarray
    known: np.ndarray

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3 or not self.frames.size:
            raise UserError(f"frames must be uint8 (T, H, W, 3), not {self.frames.dtype} {self.frames.shape}")
        if self.known.dtype != bool or self.known.shape != self.frames.shape[:3]:
            raise UserError(f"known must be bool {self.frames.shape[:3]}, not {self.known.dtype} {self.known.shape}")

    @property
    def shape(self) -> VideoShape:
        return VideoShape(*self.frames.shape[:3])

    def padded(self, grid: Grid) -> Canvas:
        """The least canvas that divides (as 4k+1 frames, sides of 16 pixels), its far edges repeated."""
        snapped = grid.snapped(self.shape)
        size = (snapped.frames, snapped.height, snapped.width)
        missing = [(0, want - have) for want, have in zip(size, self.known.shape, strict=True)]
        if not any(after for _, after in missing):
            return self
        frames = np.pad(self.frames, [*missing, (0, 0)], mode="edge")
        return Canvas(frames, np.pad(self.known, missing, mode="edge"))

    def cells(self, grid: Grid) -> np.ndarray:
        """bool (T', H', W') of a padded canvas: latent cells whose pixels are all known."""
        return np.asarray(self.cells_of_frames(grid).all(0))

    def cells_of_frames(self, grid: Grid) -> np.ndarray:
        """bool (temporal, T', H', W'): the same for each frame of a cell; the first frame counts for all of its own."""
        _, h, w = self.known.shape
        groups = np.concatenate([np.repeat(self.known[:1], grid.temporal - 1, axis=0), self.known])
        cells = groups.reshape(-1, grid.temporal, h // grid.spatial, grid.spatial, w // grid.spatial, grid.spatial)
        return np.asarray(cells.all((3, 5))).swapaxes(0, 1)

    def filled(self) -> np.ndarray:
        """The frames with unknown pixels as the nearest known ones of their frame, unknown frames as the nearest
        that has some: an autoencoder sees beyond a cell, and shall see nothing foreign there."""
        some = np.flatnonzero(self.known.any((1, 2)))
        if not len(some):
            return self.frames
        out = self.frames.copy()
        for t in some:
            if not self.known[t].all():
                from scipy import ndimage

                rows, columns = ndimage.distance_transform_edt(
                    ~self.known[t], return_distances=False, return_indices=True
                )
                out[t] = out[t, rows, columns]
        times = np.arange(len(out))
        after = some[np.searchsorted(some, times).clip(max=len(some) - 1)]
        before = some[(np.searchsorted(some, times, side="right") - 1).clip(min=0)]
        filled: np.ndarray = out[np.where(abs(after - times) < abs(times - before), after, before)]
        return filled

    def restored(self, painted: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Painted frames in pieces uint8 (t, H, W, 3), with what is known put back bit for bit and joined, see
        `joined`; one frame (H, W, 3) at a time."""
        whole = np.asarray(self.known.all((1, 2)))
        frames = joined(painted, lambda t: self.frames[t] if whole[t] else None)
        for t, frame in enumerate(frames):
            yield np.where(self.known[t, ..., None], self.frames[t], frame)


def joined(painted: Iterable[np.ndarray], exact: Callable[[int], np.ndarray | None]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of pieces uint8 (t, H, W, 3), those that `exact` knows put in, without a jump at their edges.

    What comes out of an autoencoder is softer than what went in, so a join would show even where nothing moves. What
    a known frame lost on that way is therefore added to the painted frames beside it: less from frame to frame, over
    `FADE` frames, and only where they show the same thing. At most `FADE` frames wait for a known one to come.
    """
    before: _Known | None = None
    waiting: deque[tuple[int, np.ndarray]] = deque()
    for t, frame in enumerate(frame for piece in painted for frame in piece):
        known = exact(t)
        if known is None:
            waiting.append((t, frame))
            if len(waiting) > FADE:
                yield _detailed(*waiting.popleft(), before, None)
            continue
        after = _Known(t, known, frame)
        while waiting:
            yield _detailed(*waiting.popleft(), before, after)
        yield known
        before = after
    while waiting:
        yield _detailed(*waiting.popleft(), before, None)


class _Known(NamedTuple):
    """A known frame (H, W, 3), its number, and what the autoencoder made of it."""

    number: int
    exact: np.ndarray
    decoded: np.ndarray


def _detailed(number: int, frame: np.ndarray, *beside: _Known | None) -> np.ndarray:
    """A painted frame with the detail of the known ones beside it."""
    near = [(known, 1 - abs(known.number - number) / (FADE + 1)) for known in beside if known is not None]
    near = [(known, weight) for known, weight in near if weight > 0]
    if not near:
        return frame
    from scipy import ndimage

    most = max(1.0, sum(weight for _, weight in near))
    out = frame.astype(np.float32)
    for known, weight in near:
        decoded = known.decoded.astype(np.float32)
        change = ndimage.uniform_filter(np.square(frame - decoded).mean(-1), 5)  # (H, W)
        same = np.exp(-change / SAME**2)
        out += weight / most * same[..., None] * (known.exact - decoded)
    return out.round().clip(0, 255).astype(np.uint8)


def timeline(pieces: Sequence[np.ndarray | int], size: tuple[int, int] | None = None) -> Canvas:
    """Known frames (t, H, W, 3) and numbers of unknown ones, in turn; `size` (H, W) where all are unknown."""
    shown = [piece for piece in pieces if not isinstance(piece, int)]
    height, width = shown[0].shape[1:3] if shown else size or (0, 0)
    frames = [np.zeros((p, height, width, 3), np.uint8) if isinstance(p, int) else p for p in pieces]
    known = [
        np.full((len(part), height, width), not isinstance(p, int)) for p, part in zip(pieces, frames, strict=True)
    ]
    return Canvas(np.concatenate(frames), np.concatenate(known))


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, stop) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags, int), [0]])))
    return [(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture uint8 (h, w, 3) scaled to cover (height, width) and cropped at its centre; raises UserError."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        found = f"{picture.dtype} {picture.shape}"
        raise UserError(f"image: expected uint8 (H, W, 3), found {found}; read it with worldline.media.read.read_image")
    if picture.shape[:2] == (height, width):
        return picture
    import torch
    import torch.nn.functional as F

    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = max(height, round(picture.shape[0] * scale)), max(width, round(picture.shape[1] * scale))
    pixels: Any = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    pixels = pixels[:, top : top + height, left : left + width].round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]
