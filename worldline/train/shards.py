"""Clips become shards: each is decoded once, shaped, encoded by the VAE, and its captions by a frozen text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from worldline.data.fit import Fit, FitPlan, fit, rate, shaped, stretched
from worldline.data.shards import Packed, Row, write_shards
from worldline.media.clips import read_clips
from worldline.records import Example
from worldline.shapes import OURS, Grid
from worldline.text import TextEncoder
from worldline.train.precompute import to_pixels


@dataclass(frozen=True)
class ShardsPlan:
    """Which clips go into shards and how many into one. `vae` and `text` name the weights that made the bytes."""

    fit: FitPlan = field(default_factory=FitPlan)
    per_shard: int = 256
    vae: str = ""
    text: str = ""


Encode = Callable[[torch.Tensor], torch.Tensor]  # pixels (B, 3, T, H, W) in [-1, 1] -> means (B, C, T', H', W')


def merged(examples: Sequence[Example]) -> list[Example]:
    """Equal clips as one, with the captions of all: in order of id, so that the order of sources does not matter."""
    byid: dict[str, Example] = {}
    for example in examples:
        held = byid.get(example.clip.id)
        if held is not None:
            extra = tuple(c for c in example.captions if c.text not in {d.text for d in held.captions})
            example = replace(held, captions=held.captions + extra)
        byid[example.clip.id] = example
    return [byid[name] for name in sorted(byid)]


def make_shards(
    examples: Sequence[Example],
    plan: ShardsPlan,
    encode: Encode,
    out: str,
    text: TextEncoder | None = None,
    grid: Grid = OURS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Writes the shards of `examples` that `out` lacks; returns the rows of the index, those left out with a reason.

    `text` is a frozen encoder; None where the model learns its own from the captions.
    """
    whole = merged(stretched(examples, plan.fit))
    groups = [whole[start : start + plan.per_shard] for start in range(0, len(whole), plan.per_shard)]
    ids = [example.clip.id for example in whole]
    about = {**asdict(plan), "clips": len(ids), "first": ids[:1], "last": ids[-1:]}

    def pack(group: Sequence[Example]) -> Iterator[Packed | Row]:
        return _pack(group, plan.fit, encode, text, grid)

    return write_shards(out, about, groups, pack, progress)


def _pack(
    group: Sequence[Example], plan: FitPlan, encode: Encode, text: TextEncoder | None, grid: Grid
) -> Iterator[Packed | Row]:
    """The group's samples in its order; frames are read source by source."""
    fits = {example.clip.id: fit(example.clip, plan, grid, len(example.captions)) for example in group}
    wanted = [example.clip for example in group if not fits[example.clip.id].reason]
    done: dict[str, np.ndarray | str] = {name: landed.reason for name, landed in fits.items()}
    for clip, frames in read_clips(wanted, rate=lambda clip: rate(fits[clip.id])):
        done[clip.id] = str(frames) if not isinstance(frames, np.ndarray) else _encoded(frames, fits[clip.id], encode)
    for example in group:
        latents, landed = done[example.clip.id], fits[example.clip.id]
        row = _row(example, landed)
        if isinstance(latents, str):
            yield replace(row, reason=latents)
            continue
        states, lengths = _states(text, row.captions)
        yield Packed(replace(row, state_lengths=lengths), latents, states)


def _encoded(frames: np.ndarray, landed: Fit, encode: Encode) -> np.ndarray:
    pixels = to_pixels(shaped(frames, landed)[None])
    with torch.no_grad():
        return encode(pixels)[0].to("cpu", torch.float16).numpy()


def _row(example: Example, landed: Fit) -> Row:
    clip = example.clip
    captions = [caption.text for caption in example.captions]
    return Row(clip.id, clip.source, clip.start, clip.end, tokens=landed.tokens, fps=landed.fps, captions=captions)


def _states(text: TextEncoder | None, captions: list[str]) -> tuple[np.ndarray | None, list[int]]:
    if text is None or not captions:
        return None, []
    with torch.no_grad():
        states: Any = text.encode(captions)
    return states.states.to("cpu", torch.float16).numpy(), states.cu_seqlens.diff().tolist()
