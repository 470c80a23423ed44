"""Kept clips as clean files: H.264 at a constant rate, upright, square pixels, without bars."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from worldline.curate.sources import local_copy
from worldline.media.read import iter_frames
from worldline.media.write import write_video
from worldline.records import Clip


def transcode(source: str, clips: list[Clip], folder: str) -> list[str]:
    """Writes the clips of one file, given in order, decoding it once; returns their ids."""
    with local_copy(source) as path:
        media = clips[0].media
        assert media is not None
        rate = Fraction(media.fps).limit_denominator(1001)
        frames = enumerate(iter_frames(path, fps=rate))
        for clip in clips:
            about = {"source_sha256": clip.source_sha256, "start": clip.start, "end": clip.end}
            write_video(Path(folder) / f"{clip.id}.mp4", _frames_of(clip, frames, rate), rate, about)
    return [clip.id for clip in clips]


def _frames_of(clip: Clip, frames: Iterator[tuple[int, np.ndarray]], rate: Fraction) -> Iterator[np.ndarray]:
    """The frames shown between start and end, without bars; leaves `frames` at the first one after them."""
    first, end = round(clip.start * rate), max(round(clip.start * rate) + 1, round(clip.end * rate))
    left, top, width, height = clip.crop or (0, 0, *clip.size)
    for index, pixels in frames:
        if index >= first:
            yield pixels[top : top + height, left : left + width]
        if index + 1 >= end:
            return
