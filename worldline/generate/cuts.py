"""How an autoencoder takes a video in the memory at hand: so many latent frames at a time, whole or in tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from worldline.generate.footprint import coding_bytes, traced
from worldline.shapes import LatentShape
from worldline.vae.codec import Cut, VideoCodec
from worldline.vae.tiles import tiles

DECODED = 2**14  # latent cells decoded at once, at most four frames of them; of larger frames one
SIDES = (96, 64, 48, 32, 24, 16, 8)  # of tiles, in latent cells, that are tried


def standard_cut(height: int, width: int) -> Cut:
    """How frames of so many cells are cut where memory is plenty: results do not depend on how much there is."""
    return Cut(max(1, min(4, DECODED // (height * width))))


def cuts(vae: VideoCodec, latent: LatentShape) -> Iterator[Cut]:
    """Ways to cut a video, from the fastest to the one that takes least."""
    cut = Cut(latent.frames) if vae.whole_clips else standard_cut(latent.height, latent.width)
    yield cut
    if vae.whole_clips:
        cut = Cut(4, blended=True)
        yield cut
    elif cut.frames > 1:
        cut = replace(cut, frames=1)
        yield cut
    yield from (replace(cut, side=side) for side in SIDES if side < max(latent.height, latent.width))


def first_fitting(
    vae: VideoCodec,
    dtype: torch.dtype,
    latent: LatentShape,
    ways: Sequence[str],
    room: float,
    slack: Mapping[str, float],
) -> tuple[Cut, dict[str, float]]:
    """The first cut that fits into `room` bytes, or that takes least, and the bytes that each of the `ways` ("encode",
    "decode") takes: `slack` times those alive."""

    def taken(cut: Cut) -> dict[str, float]:
        shape = latent.frames, latent.height, latent.width
        return {way: slack[way] * coded(vae, dtype, way, cut, *shape) for way in ways}

    best, least = None, math.inf
    for cut in cuts(vae, latent):
        sizes = taken(cut)
        peak = max(sizes.values())
        if peak <= room:
            return cut, sizes
        if peak < least:
            best, least = (cut, sizes), peak
    assert best is not None
    return best


def coded(vae: VideoCodec, dtype: torch.dtype, way: str, cut: Cut, frames: int, height: int, width: int) -> float:
    """Bytes alive while a video of so many latent frames goes one way."""
    c, chunk = vae.config, f"{way}_chunk"
    size = torch.empty((), dtype=dtype).element_size()
    pixels = 3.0 * c.temporal * frames * c.spatial**2 * height * width
    if vae.whole_clips and not cut.blended:
        return coding_bytes(vae, dtype, chunk, frames, height, width, alone=True)
    if vae.whole_clips:
        down, across = (min(cut.side or side, side) for side in (height, width))
        faded = 3 * size * pixels / max(1, frames) * (cut.frames + 1)  # two rows of tiles and what they join to
        return coding_bytes(vae, dtype, chunk, min(frames, cut.frames + 1), down, across, alone=True) + faded
    if not cut.side:
        if way == "decode":  # the first latent frame goes alone
            return coding_bytes(vae, dtype, chunk, max(1, min(frames - 1, cut.frames)), height, width, frames == 1)
        count = min(frames, cut.frames)
        turned = 12 * pixels / frames * count  # uint8 into float32: three of those at a time
        return coding_bytes(vae, dtype, chunk, count, height, width, alone=frames <= cut.frames) + turned
    reach = vae.decode_reach if way == "decode" else vae.encode_reach
    widest = max(tiles(height, width, cut.side, reach), key=lambda tile: tile.cells)
    down, across = (stop - first for first, stop in (widest.wide_rows, widest.wide_columns))
    whole = coding_bytes(vae, dtype, f"{way}_whole", cut.frames, height, width) if way == "decode" else 0.0
    config: Any = vae.config
    states = traced(type(vae), config, dtype, "decode_whole", False, 1, 16, 12)[1] / (16 * 12) * frames * height * width
    held = pixels + states if way == "decode" else 4 * pixels + states
    return held + max(whole, coding_bytes(vae, dtype, f"{way}_local", cut.frames, down, across))
