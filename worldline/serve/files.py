"""What an engine hands over: the video, written while its frames come, and the pictures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldline.media.preview import sprites, thumbnail
from worldline.media.provenance import Parent
from worldline.media.read import iter_frames
from worldline.media.write import write_image, write_video
from worldline.serve.orders import Facts

VIDEO, THUMBNAIL, SPRITES = "video.mp4", "thumbnail.webp", "spritesheet.jpg"
LATENTS = "latents"  # a folder beside them, which outlives an attempt
SHOWN = 16  # frames of a spritesheet
SIDE = 256  # pixels of a thumbnail's longer side


Done = tuple[list[Path], dict[str, Any], np.ndarray]
"""Finished files, the measures of the video as JSON values, and some of its frames uint8 (T, H, W, 3)."""


class Made(NamedTuple):
    """Frames uint8 (H, W, 3), which may still have to be made, with their rate, the record of their making, and the
    files that they are made from."""

    frames: Iterable[np.ndarray]
    fps: Fraction
    record: dict[str, Any]
    parents: Sequence[Parent] = ()


def write_files(made: Made, folder: Path) -> Done:
    """Writes the video and its pictures; the files, the video's measures, and up to SHOWN of its frames.

    Frames are encoded as they come, and read back for the pictures: no video is held as a whole. Raises UserError
    for a full disk.
    """
    video = folder / VIDEO
    counted = _Counted(made.frames)
    write_video(video, counted, made.fps, made.record, parents=made.parents)
    shown = _spread(iter_frames(video), counted.count)
    height, width = shown.shape[1:3]
    write_image(folder / THUMBNAIL, thumbnail(shown, min(SIDE, max(height, width))), made.record, parents=made.parents)
    small = np.stack([thumbnail(frame[None], min(SIDE, max(height, width))) for frame in shown])
    write_image(folder / SPRITES, sprites(small), made.record, parents=made.parents)
    facts = Facts(width, height, counted.count, made.fps)
    return [video, folder / THUMBNAIL, folder / SPRITES], facts.as_dict(), shown


class _Counted:
    """Frames that are counted as they pass."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        self.frames, self.count = frames, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self.frames:
            self.count += 1
            yield frame


def _spread(frames: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Up to SHOWN of `count` frames at even distances, uint8 (T, H, W, 3)."""
    wanted: Sequence[int] = sorted({int(i) for i in np.linspace(0, count - 1, min(count, SHOWN)).round()})
    return np.stack([frame for i, frame in enumerate(frames) if i in set(wanted)])
