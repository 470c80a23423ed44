"""The one way to condition on video: known latents and a mask over (t, h, w), and what drives the world, for training
and generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldline.dit.patchify import Patch, grid, patchify
from worldline.errors import UserError


@dataclass(frozen=True)
class Conditions:
    """known (C, T, H, W): latents, zero where unknown; mask (1, T, H, W): 1 where known; actions (T, A + 1) as
    `driven` makes them, None where the world runs by itself; pictures (K, image_width): states of what is known, for a
    model that is told them.

    For a model that reads clips (`TransformerConfig.known`), known are the latents of the video whose unknown pixels
    are grey, and mask is (M, T, H, W): of each of a cell's M frames whether it is known.
    """

    known: Tensor
    mask: Tensor
    actions: Tensor | None = None
    pictures: Tensor | None = None

    def at(self, times: Sequence[int]) -> Conditions:
        """Of these latent frames alone."""
        of_times = None if self.actions is None else self.actions[list(times)]
        return Conditions(self.known[:, list(times)], self.mask[:, list(times)], of_times, self.pictures)

    def tokens(self, patch: Patch) -> tuple[Tensor, Tensor]:
        """known (n, C*P) and mask (n, M*P) as the model reads them, P = pt*ph*pw."""
        return patchify(self.known, patch)[0], patchify(self.mask, patch)[0]


def frames_to_tokens(values: Tensor, shape: Sequence[int], patch: Patch) -> Tensor:
    """Values of latent frames (T, A), as what drives them, for the tokens of latents of `shape` (..., T, H, W): (n, A).

    With pt above 1 a token goes by the first of its latent frames.
    """
    _, h, w = grid(shape, patch)
    return values[:: patch[0]].repeat_interleave(h * w, dim=0)


def driven(inputs: Tensor, times: Sequence[int], temporal: int = 4) -> Tensor:
    """What drives the world during each latent frame: (T, temporal * K + 1), the last value 1 for "this is all".

    Args:
        inputs: (F, K), of which row f acts from frame f to frame f + 1; nothing acts after the last.
        times: numbers of the latent frames; number t ends at frame temporal * t, and 0 is a picture before which
            nothing acted.
    """
    _, width = inputs.shape
    last = max(times, default=0)
    rows = torch.zeros(temporal * (last + 1), width)
    kept = min(len(inputs), temporal * last)
    rows[temporal : temporal + kept] = inputs[:kept]
    groups = rows.view(last + 1, temporal * width)[list(times)]
    return torch.cat([groups, torch.ones(len(groups), 1)], dim=1)


def none(shape: Sequence[int]) -> Conditions:
    """Nothing known. shape: (C, T, H, W)."""
    channels, t, h, w = shape
    return Conditions(torch.zeros(channels, t, h, w), torch.zeros(1, t, h, w))


def from_mask(latents: Tensor, mask: Tensor) -> Conditions:
    """The masked part of latents (C, T, H, W) is known; mask (1, T, H, W)."""
    mask = mask.to(latents.dtype)
    return Conditions(latents * mask, mask)


def known_frames(frames: Mapping[int, Tensor], shape: Sequence[int]) -> Conditions:
    """Whole latent frames are known.

    Args:
        frames: index in time (negative counts from the end) -> latents (C, k, H, W) that start there.
        shape: (C, T, H, W) of the sample.

    Raises:
        UserError: latents of another size, or outside the sample.
    """
    conditions = none(shape)
    for index, latents in frames.items():
        start = index if index >= 0 else index + shape[1]
        stop = start + latents.shape[1]
        fits = start >= 0 and stop <= shape[1] and latents.shape[0] == shape[0]
        if not fits or latents.shape[2:] != tuple(shape[2:]):
            raise UserError(f"known frame {index} {tuple(latents.shape)} does not fit into {tuple(shape)}")
        conditions.known[:, start:stop] = latents
        conditions.mask[:, start:stop] = 1
    return conditions


def first_frame(latent: Tensor, frames: int) -> Conditions:
    """Image to video: the first latent frame (C, 1, H, W) is known, `frames` latent frames in all."""
    channels, _, h, w = latent.shape
    return known_frames({0: latent}, (channels, frames, h, w))


def random_start(rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
    """A mask (1, T, H, W): some of the first frames are known, at least one and not all, as where a world is driven.

    In four of ten it is the first alone: every rollout begins so.
    """
    mask = torch.zeros(1, *shape[1:])
    mask[:, : 1 if rng.random() < 0.4 else int(rng.integers(1, max(2, shape[1])))] = 1
    return mask


def random_mask(rng: np.random.Generator, shape: Sequence[int], nothing: float = 0.7, free: bool = True) -> Tensor:
    """A mask (1, T, H, W) as training meets them, one for every task of editing.

    `nothing`: share of samples of which nothing is known. The rest know frames, a region, or both: see `KINDS`.
    An image (T = 1) knows either nothing or a region. Unless `free` the sample is a piece of something longer, and
    at least one of its frames is known.
    """
    _, t, h, w = shape
    mask = torch.zeros(1, t, h, w)
    if free and rng.random() < nothing:
        return mask
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if t > 1 and (kind != "region" or not free):
        mask[:, _known_times(rng, t, kind)] = 1
    if t == 1 or kind in ("region", "both"):
        mask = mask.maximum(_region(rng, h, w))
    return mask


KINDS = {  # what is known, and how often
    "first": 0.35,  # an image comes to life
    "start": 0.15,  # a video goes on
    "end": 0.1,  # what came before
    "ends": 0.15,  # interpolation, loops, joins, the gaps between key frames
    "every": 0.05,  # frames between frames
    "some": 0.05,  # any frames
    "region": 0.1,  # inpainting and outpainting
    "both": 0.05,
}


def _known_times(rng: np.random.Generator, t: int, kind: str) -> np.ndarray:
    """(t,) bool, at least one of them and not all."""
    known = np.zeros(t, bool)
    some = int(rng.integers(1, t))
    if kind in ("first", "both", "region"):
        known[0] = True
    elif kind == "start":
        known[:some] = True
    elif kind == "end":
        known[-some:] = True
    elif kind == "ends":
        before = int(rng.integers(1, max(2, t // 2)))
        known[:before] = True
        known[t - int(rng.integers(1, max(2, t - before))) :] = t > 2
    elif kind == "every":
        known[:: int(rng.integers(2, max(t, 3)))] = True
    else:
        known[rng.choice(t, some, replace=False)] = True
    return known


def _region(rng: np.random.Generator, h: int, w: int) -> Tensor:
    """(h, w): a box is known (outpainting), or all but a box (inpainting)."""
    height, width = rng.integers(1, h + 1), rng.integers(1, w + 1)
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    box = torch.zeros(h, w)
    box[top : top + height, left : left + width] = 1
    return box if rng.random() < 0.5 and box.min() == 0 else 1 - box


def per_channel(mask: Tensor, width: int) -> Tensor:
    """Token mask (N, P) repeated over the channels of a token of `width` = C*P values: (N, C*P)."""
    return mask.repeat(1, width // mask.shape[-1])


def place_known(noisy: Tensor, timestep: Tensor, known: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the model sees: known values stand clean among the noisy ones; a token wholly known has timestep 0.

    Args:
        noisy: (N, D) tokens at `timestep` (N,).
        known: (N, D) known tokens, zero where unknown.
        mask: (N, P), 1 = known.

    Returns:
        tokens (N, D) and timestep (N,).
    """
    tokens = torch.where(per_channel(mask, noisy.shape[-1]) > 0, known.to(noisy.dtype), noisy)
    return tokens, timestep * (mask.amin(-1) < 1)
