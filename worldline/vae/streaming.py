"""Encoding and decoding of endless video in constant memory: chunk after chunk, one causal state between them.

Where a frame is too large it is cut into tiles, each of which goes through all of time by itself: the state of a stream
is as large as what is at work on it, so that tiles side by side would save nothing. What comes out then waits for the
last tile.

An autoencoder of `whole_clips` has no such state: its streams wait for their end and take memory as they grow, unless
they may be blended out of overlapping pieces, which is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.vae.codec import Cut, History, Posterior, VideoCodec
from worldline.vae.tiles import blended, blended_in_time, tiles


def encode_stream(
    vae: VideoCodec, chunks: Iterable[Tensor], started: bool = False, cut: Cut | None = None
) -> Iterator[Posterior]:
    """Pixels in chunks of any length, each (B, 3, t, H, W) in [-1, 1] -> posteriors, fields (B, C, t', H', W').

    Joined along time they equal `vae.encode` of the whole video, unless `cut` is blended: a chunk's frames wait until
    they fill whole groups, and the last group is completed by repeating its last frame. Frames of the rest of a stream
    never change what was given out. A `started` stream has no first frame: it comes out of the middle of a video, at a
    group. Chunks are taken as they come, tiles and what is blended as `cut` says; tiles go through `chunks` once each.
    """
    cut = cut or Cut()
    if vae.whole_clips:
        yield from _encode_blended(vae, chunks, cut) if cut.blended else _encode_joined(vae, chunks)
        return
    states = _encoded_tiles(vae, chunks, started, cut) if cut.side else None
    history = History(started)
    for part in _groups(vae, chunks, started) if states is None else states:
        with torch.no_grad():
            posterior = vae.encode_chunk(part, history) if states is None else vae.encode_whole(part, history)
        history.started = True
        yield posterior


def decode_stream(
    vae: VideoCodec,
    latents: Tensor | Iterable[Tensor],
    cut: Cut | None = None,
    size: tuple[int, int, int] | None = None,
    shown: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> Iterator[Tensor]:
    """Latents (B, C, T', H', W'), whole or in pieces along time -> pixels (B, 3, t, H, W), cut as `cut` says.

    Joined along time they equal `vae.decode(latents, size)`, unless `cut` is blended; `size` (T, H, W) crops. `shown`
    is done to every pixel by itself, before tiles are held until the last one.
    """
    cut = cut or Cut()
    arriving = iter([latents] if isinstance(latents, Tensor) else latents)
    left = None if size is None else size[0]
    for pixels in _decoded(vae, arriving, cut, shown):
        if size is not None and left is not None:
            pixels = pixels[:, :, :left, : size[1], : size[2]]
            left -= pixels.shape[2]
        if pixels.shape[2]:
            yield pixels


def _decoded(
    vae: VideoCodec, arriving: Iterator[Tensor], cut: Cut, shown: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    if vae.whole_clips:
        yield from map(shown, _decode_blended(vae, arriving, cut) if cut.blended else _decode_joined(vae, arriving))
        return
    history = History()
    parts = _chunks(arriving, cut.frames)
    if cut.side:
        yield from _decoded_tiles(vae, parts, cut, shown)
        return
    for part in parts:
        with torch.no_grad():  # chunk by chunk: a generator that is left half way would leave the mode behind
            pixels = vae.decode_chunk(part, history)
        yield shown(pixels)


def _chunks(arriving: Iterator[Tensor], frames: int) -> Iterator[Tensor]:
    """Latents in pieces -> the first latent frame, then so many at a time: each of those has frames behind it, so that
    a long video takes no more memory than a short one."""
    lead = 1
    for piece in arriving:
        first, rest = piece[:, :, :lead], piece[:, :, lead:]
        yield from (part for part in (first, *rest.split(frames, dim=2)) if part.shape[2])
        lead = 0 if piece.shape[2] else lead


def _groups(vae: VideoCodec, chunks: Iterable[Tensor], started: bool) -> Iterator[Tensor]:
    """Chunks of any length -> temporal*k+1 frames, unless `started`, and then temporal*k, whose sizes divide."""
    waiting, lead = None, 0 if started else 1  # the first frame is a group of its own
    for chunk in chunks:
        waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
        ready = (waiting.shape[2] - lead) // vae.config.temporal * vae.config.temporal + lead
        if waiting.shape[2] >= lead and ready > 0:
            yield vae.pad_space(waiting[:, :, :ready])
            waiting, lead = waiting[:, :, ready:].clone(), 0  # a view would keep the chunk alive
    if waiting is not None and waiting.shape[2]:
        yield vae.pad_space(_completed(waiting, -waiting.shape[2] % vae.config.temporal))


# ---- tiles -----------------------------------------------------------------------------------------


@torch.no_grad()
def _encoded_tiles(vae: VideoCodec, chunks: Iterable[Tensor], started: bool, cut: Cut) -> Sequence[Tensor]:
    """What `encode_local` makes of a stream, in the stream's own chunks."""
    spatial, whole = vae.config.spatial, list[Tensor]()
    chunks = chunks if isinstance(chunks, Sequence) else list(chunks)
    if not chunks:
        return whole
    height, width = (-(-size // spatial) for size in chunks[0].shape[3:])
    for tile in tiles(height, width, cut.side, vae.encode_reach):
        history = History(started)
        for i, part in enumerate(_groups(vae, chunks, started)):
            made = vae.encode_local(tile.of(part, spatial), history)
            history.started = True
            if i == len(whole):
                whole.append(made.new_empty(*made.shape[:3], height, width))
            tile.put(made, whole[i], 1)
    return whole


@torch.no_grad()
def _decoded_tiles(
    vae: VideoCodec, parts: Iterable[Tensor], cut: Cut, shown: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    spatial, history = vae.config.spatial, History()
    states, whole = list[Tensor](), list[Tensor]()
    for part in parts:
        states.append(vae.decode_whole(part, history))
        history.started = True
    if not states:
        return
    height, width = states[0].shape[3:]
    for tile in tiles(height, width, cut.side, vae.decode_reach):
        history = History()
        for i, state in enumerate(states):
            made = shown(vae.decode_local(tile.of(state, 1), history))
            history.started = True
            if i == len(whole):
                whole.append(made.new_empty(*made.shape[:3], spatial * height, spatial * width))
            tile.put(made, whole[i], spatial)
    yield from whole


# ---- autoencoders that know no chunks ---------------------------------------------------------------


def _decode_joined(vae: VideoCodec, arriving: Iterable[Tensor]) -> Iterator[Tensor]:
    for z in _joined(arriving):
        with torch.no_grad():
            pixels = vae.decode(z)
        yield pixels


def _decode_blended(vae: VideoCodec, arriving: Iterator[Tensor], cut: Cut) -> Iterator[Tensor]:
    @torch.no_grad()
    def decoded(z: Tensor) -> Tensor:
        return blended(vae.decode, z, cut.side, (1, vae.config.spatial))

    yield from blended_in_time(decoded, arriving, cut.frames, vae.config.temporal, decoding=True)


def _encode_joined(vae: VideoCodec, chunks: Iterable[Tensor]) -> Iterator[Posterior]:
    for clip in _joined(chunks):
        with torch.no_grad():
            posterior = vae.encode(clip)
        yield posterior


def _encode_blended(vae: VideoCodec, chunks: Iterable[Tensor], cut: Cut) -> Iterator[Posterior]:
    def moments(x: Tensor) -> Tensor:
        posterior = vae.encode(x)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    @torch.no_grad()
    def encoded(x: Tensor) -> Tensor:
        x = vae.pad_space(_completed(x, -(x.shape[2] - 1) % vae.config.temporal))
        return blended(moments, x, cut.side, (vae.config.spatial, 1))

    for made in blended_in_time(encoded, iter(chunks), cut.frames, vae.config.temporal, decoding=False):
        yield Posterior(*made.chunk(2, dim=1))


def _joined(pieces: Iterable[Tensor]) -> list[Tensor]:
    """All pieces as one, for an autoencoder that knows no chunks."""
    whole = list(pieces)
    return [torch.cat(whole, dim=2)] if whole else []


def _completed(x: Tensor, missing: int) -> Tensor:
    """Frames (B, C, T, H, W) with the last one repeated `missing` times."""
    return F.pad(x, (0, 0, 0, 0, 0, missing), mode="replicate") if missing else x
