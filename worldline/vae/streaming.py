"""Encoding and decoding of endless video in constant memory: chunk after chunk, one causal state between them.

An autoencoder of `whole_clips` has no such state: its streams wait for their end and take memory as they grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.errors import UserError
from worldline.vae.codec import History, Posterior, VideoCodec


def encode_stream(vae: VideoCodec, chunks: Iterable[Tensor], started: bool = False) -> Iterator[Posterior]:
    """Pixels in chunks of any length, each (B, 3, t, H, W) in [-1, 1] -> posteriors, fields (B, C, t', H', W').

    Joined along time they equal `vae.encode` of the whole video: a chunk's frames wait until they fill whole
    groups, and the last group is completed by repeating its last frame. Frames of the rest of a stream never change
    what was given out. A `started` stream has no first frame: it comes out of the middle of a video, at a group.
    """
    if vae.whole_clips:
        yield from (_encode_whole(vae, clip) for clip in _joined(chunks))
        return
    history, waiting = History(), None
    history.started = started
    for chunk in chunks:
        waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
        frames = waiting.shape[2]
        lead = 0 if history.started else 1  # the first frame is a group of its own
        ready = (frames - lead) // vae.config.temporal * vae.config.temporal + lead
        if frames >= lead and ready > 0:
            yield _encode(vae, waiting[:, :, :ready], history)
            waiting = waiting[:, :, ready:].clone()  # a view would keep the chunk alive
    if waiting is not None and waiting.shape[2]:
        short = vae.config.temporal - waiting.shape[2]
        yield _encode(vae, F.pad(waiting, (0, 0, 0, 0, 0, short), mode="replicate"), history)


def decode_stream(
    vae: VideoCodec,
    latents: Tensor | Iterable[Tensor],
    chunk: int = 4,
    size: tuple[int, int, int] | None = None,
) -> Iterator[Tensor]:
    """Latents (B, C, T', H', W'), whole or in pieces along time -> pixels (B, 3, t, H, W), `chunk` groups at a time.

    Joined along time they equal `vae.decode(latents, size)`; `size` (T, H, W) crops. Raises UserError for `chunk` < 1.
    """
    if chunk < 1:
        raise UserError(f"chunk={chunk}: the nearest valid value is 1 latent frame")
    history, left = History(), None if size is None else size[0]
    arriving = [latents] if isinstance(latents, Tensor) else latents
    for piece in _joined(arriving) if vae.whole_clips else arriving:
        for part in [piece] if vae.whole_clips else piece.split(chunk, dim=2):
            with torch.no_grad():
                pixels = vae.decode_chunk(part, history)
            if size is not None and left is not None:
                pixels = pixels[:, :, :left, : size[1], : size[2]]
                left -= pixels.shape[2]
            if pixels.shape[2]:
                yield pixels


def _joined(pieces: Iterable[Tensor]) -> list[Tensor]:
    """All pieces as one, for an autoencoder that knows no chunks."""
    whole = list(pieces)
    return [torch.cat(whole, dim=2)] if whole else []


@torch.no_grad()
def _encode_whole(vae: VideoCodec, clip: Tensor) -> Posterior:
    return vae.encode(clip)


@torch.no_grad()
def _encode(vae: VideoCodec, frames: Tensor, history: History) -> Posterior:
    return vae.encode_chunk(vae.pad_space(frames), history)
