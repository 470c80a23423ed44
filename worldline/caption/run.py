"""Captions for many clips: what is missing is made in small steps, each of which is kept at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from worldline.caption.captioner import Captioner, Spoken, spread
from worldline.errors import UserError
from worldline.media.clips import read_clips
from worldline.records import Caption, Clip, add_captions

STEP = 32  # clips between two writes
Todo = list[tuple[Clip, str]]  # clip, style


def missing(clips: Sequence[Clip], captioner: Captioner, styles: Sequence[str], held: Sequence[Caption]) -> Todo:
    """(clip, style) of the captions that this captioner has not added yet; equal clips are captioned once."""
    known = {caption.origin for caption in held}
    todo = {}
    for clip, style in itertools.product(clips, styles):
        if (clip.id, style, captioner.model, captioner.version, captioner.prompt(style)) not in known:
            todo[clip.id, style] = clip, style
    return list(todo.values())


def caption_all(
    todo: Todo,
    captioner: Captioner,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Caption]:
    """Makes the captions of `missing`, adds them to `out` and returns them; `say` gets what could not be read."""
    made: list[Caption] = []
    done = 0
    for style in dict.fromkeys(style for _, style in todo):
        clips = [clip for clip, wanted in todo if wanted == style]
        looked = read_clips(clips, lambda count: spread(count, captioner.frames))
        for step in _steps(looked):
            readable = [(clip, frames) for clip, frames in step if isinstance(frames, np.ndarray)]
            for clip, error in step:
                if isinstance(error, UserError) and say:
                    say(f"left out: {clip.id}: {error}")
            said = captioner.describe([frames for _, frames in readable], style) if readable else []
            new = [_caption(clip, spoken, style, captioner) for (clip, _), spoken in zip(readable, said, strict=True)]
            add_captions(out, new)
            made += new
            done += len(step)
            if progress:
                progress(done, len(todo))
    return made


def _steps(
    looked: Iterator[tuple[Clip, np.ndarray | UserError]],
) -> Iterator[list[tuple[Clip, np.ndarray | UserError]]]:
    while step := list(itertools.islice(looked, STEP)):
        yield step


def _caption(clip: Clip, spoken: Spoken, style: str, captioner: Captioner) -> Caption:
    return Caption(
        clip.id, spoken.text, style, captioner.model, captioner.version, captioner.prompt(style), spoken.sure
    )
