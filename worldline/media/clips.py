"""Frames of clips: every source is decoded once, from front to back, however many of its clips are wanted."""

from __future__ import annotations

import itertools
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from worldline.errors import UserError
from worldline.media.read import iter_frames, probe
from worldline.records import Clip

Pick = Callable[[int], Sequence[int] | np.ndarray]  # how many frames a clip has -> the numbers of those wanted


def read_clips(
    clips: Iterable[Clip], pick: Pick | None = None, rate: Callable[[Clip], Fraction] | None = None
) -> Iterator[tuple[Clip, np.ndarray | UserError]]:
    """Each clip with its frames uint8 (T, H, W, 3) without bars; a clip that cannot be read comes with the reason.
    Clips of one source and rate come together, in order of time.

    Args:
        pick: all frames unless given; only those that it picks are held in memory.
        rate: frames per second; the file's own unless given.
    """

    def way(clip: Clip) -> tuple[str, Fraction]:
        return clip.source, rate(clip) if rate else Fraction(0)

    for (source, fps), group in itertools.groupby(sorted(clips, key=lambda clip: (*way(clip), clip.start)), key=way):
        wanted = list(group)
        done = 0
        try:
            with local_copy(source) as path:
                for clip, frames in _of_file(path, wanted, pick, fps):
                    yield clip, frames
                    done += 1
        except UserError as error:
            yield from ((clip, error) for clip in wanted[done:])


INSIDE = "::"  # joins a tar file and the name of a member


@contextmanager
def local_copy(source: str) -> Iterator[Path]:
    """A source as a file: itself, or a temporary copy of what lies in a tar file or behind an address (fsspec).

    Raises UserError when there is none.
    """
    tar, _, member = source.partition(INSIDE)
    if not member and "://" not in source:
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(member or source).name
        try:
            with _opened(tar) as file, copy.open("wb") as out:
                if not member:
                    shutil.copyfileobj(file, out)
                else:
                    with tarfile.open(fileobj=file, mode="r:") as held, held.extractfile(member) as inner:  # type: ignore[union-attr]
                        shutil.copyfileobj(inner, out)
        except (OSError, KeyError, tarfile.TarError, ValueError) as error:
            raise UserError(f"{source}: cannot be read ({error})") from None
        yield copy


def _opened(path: str) -> IO[bytes]:
    if "://" not in path:
        return open(path, "rb")
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{path}: addresses need the extra `data`; `pip install 'worldline[data]'`") from None
    file: IO[bytes] = fsspec.open(path, "rb").open()
    return file


def _of_file(
    path: Path, clips: list[Clip], pick: Pick | None, fps: Fraction
) -> Iterator[tuple[Clip, np.ndarray | UserError]]:
    fps = fps or probe(path).fps
    frames = iter_frames(path, fps=fps)
    at = 0  # number of the next frame
    for clip in clips:
        first, stop = round(clip.start * fps), max(round(clip.start * fps) + 1, round(clip.end * fps))
        skipped = sum(1 for _ in itertools.islice(frames, max(0, first - at)))
        taken = _picked(itertools.islice(frames, stop - first), stop - first, pick)
        at += skipped + (stop - first)
        if not taken:
            yield clip, UserError(f"{clip.source}: ends before second {clip.start:g}")
            continue
        yield clip, _cropped(np.stack(taken), clip.crop)


def _picked(frames: Iterator[np.ndarray], count: int, pick: Pick | None) -> list[np.ndarray]:
    """The frames that `pick` wants of `count`; where the file ends early, its last one in place of those missing."""
    numbers = range(count) if pick is None else [int(i) for i in pick(count)]
    wanted, found = set(numbers), {}
    last = -1
    for last, frame in enumerate(frames):
        if last in wanted:
            found[last] = frame
        newest = frame
    if last < 0:
        return []
    if pick is None:
        return [found[i] for i in range(last + 1)]
    return [found.get(i, newest) for i in numbers]


def _cropped(frames: np.ndarray, crop: tuple[int, int, int, int] | None) -> np.ndarray:
    if crop is None:
        return frames
    left, top, width, height = crop
    return frames[:, top : top + height, left : left + width]
