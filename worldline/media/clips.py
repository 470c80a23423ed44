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
    clips: Iterable[Clip], root: Path | None = None, pick: Pick | None = None, fps: Fraction | None = None
) -> Iterator[tuple[Clip, np.ndarray | UserError]]:
    """Each clip with its frames uint8 (T, H, W, 3) without bars, at the file's own rate or at `fps`; a clip that cannot
    be read comes with the reason. Clips of one source come together, in order of time.

    Args:
        root: folder of the manifest, from which transcoded clips are found.
        pick: all frames unless given; only those it picks are held in memory.
    """
    for (source, whole), group in itertools.groupby(sorted(clips, key=_order), key=_source):
        wanted = list(group)
        try:
            with local_copy(str((root or Path()) / source) if whole else source) as path:
                yield from _of_file(path, wanted, whole, pick, fps)
        except UserError as error:
            yield from ((clip, error) for clip in wanted)


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


def _order(clip: Clip) -> tuple[str, bool, float]:
    return (*_source(clip), clip.start)


def _source(clip: Clip) -> tuple[str, bool]:
    """The file to read, and whether it holds this clip alone."""
    return (clip.path, True) if clip.path else (clip.source, False)


def _of_file(
    path: Path, clips: list[Clip], whole: bool, pick: Pick | None, fps: Fraction | None
) -> Iterator[tuple[Clip, np.ndarray | UserError]]:
    rate = fps or probe(path).fps
    frames = enumerate(iter_frames(path, fps=rate))
    for number, clip in enumerate(clips):
        first = 0 if whole else round(clip.start * rate)
        count = max(1, round(clip.seconds * rate)) if clip.end > clip.start else 1 << 40
        stretch = itertools.takewhile(lambda item, stop=first + count: item[0] < stop, frames)  # type: ignore[misc]
        inside = (frame for index, frame in stretch if index >= first)
        try:
            taken = _picked(inside, count, pick)
        except UserError as error:
            yield from ((left, error) for left in clips[number:])
            return
        if not taken:
            yield clip, UserError(f"{path}: ends before second {clip.start:g}")
            continue
        yield clip, _cropped(np.stack(taken), None if whole else clip.crop)


def _picked(frames: Iterator[np.ndarray], count: int, pick: Pick | None) -> list[np.ndarray]:
    if pick is None or count >= 1 << 40:
        held = list(frames)
        return held if pick is None else [held[i] for i in pick(len(held))] if held else []
    numbers = [int(i) for i in pick(count)]
    wanted = set(numbers)
    found: dict[int, np.ndarray] = {}
    last = -1
    for last, frame in enumerate(frames):
        if last in wanted:
            found[last] = frame
        newest = frame
    if last < 0:
        return []
    return [found.get(min(i, last), newest) for i in numbers]


def _cropped(frames: np.ndarray, crop: tuple[int, int, int, int] | None) -> np.ndarray:
    if crop is None:
        return frames
    left, top, width, height = crop
    return frames[:, top : top + height, left : left + width]
