"""Latents to tokens and back, and the packing of many samples into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.errors import UserError

Patch = tuple[int, int, int]


@dataclass(frozen=True)
class Packed:
    """Many samples in one sequence.

    tokens (N, D); coords (N, 3) integer (t, h, w) in tokens; cu_seqlens (B+1,); shapes: each sample's (C, T, H, W).
    Where latent frames are not neighbours, t tells how far apart they are.
    """

    tokens: Tensor
    coords: Tensor
    cu_seqlens: Tensor
    shapes: tuple[tuple[int, int, int, int], ...]


def grid(shape: Sequence[int], patch: Patch) -> tuple[int, int, int]:
    """Tokens along (t, h, w) of latents (..., T, H, W); a size that does not divide is rounded up."""
    t, h, w = (-(-size // p) for size, p in zip(shape[-3:], patch, strict=True))
    return t, h, w


def coordinates(shape: Sequence[int], patch: Patch, device: torch.device | None = None) -> Tensor:
    """(n, 3) integer (t, h, w) of each token, in the order of `patchify`."""
    axes = [torch.arange(size, device=device) for size in grid(shape, patch)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def patchify(latents: Tensor, patch: Patch) -> tuple[Tensor, Tensor]:
    """Cut latents into tokens; channels of a token run (c, pt, ph, pw).

    Args:
        latents: (C, T, H, W), or (B, C, T, H, W) for samples of one size.
        patch: (pt, ph, pw). Sizes that do not divide are padded by their edge.

    Returns:
        tokens (B*n, C*pt*ph*pw) and coords (B*n, 3).
    """
    if latents.dim() not in (4, 5):
        raise UserError(f"latents of shape {tuple(latents.shape)}: expected (C, T, H, W) or (B, C, T, H, W)")
    x = latents if latents.dim() == 5 else latents[None]  # (B, C, T, H, W)
    (t, h, w), (pt, ph, pw) = grid(x.shape, patch), patch
    missing = [n * p - size for n, p, size in zip((t, h, w), patch, x.shape[-3:], strict=True)]
    if any(missing):
        x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
    x = x.unflatten(4, (w, pw)).unflatten(3, (h, ph)).unflatten(2, (t, pt))  # (B, C, t, pt, h, ph, w, pw)
    tokens = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(0, 3)  # (B*n, C*pt*ph*pw)
    return tokens, coordinates(x.shape[:2] + (t * pt, h * ph, w * pw), patch, x.device).repeat(len(x), 1)


def unpatchify(tokens: Tensor, shape: Sequence[int], patch: Patch) -> Tensor:
    """Inverse of `patchify`: tokens (B*n, C*pt*ph*pw) to latents of `shape`, (C, T, H, W) or (B, C, T, H, W)."""
    (t, h, w), (pt, ph, pw) = grid(shape, patch), patch
    batch = shape[0] if len(shape) == 5 else 1
    x = tokens.reshape(batch, t, h, w, shape[-4], pt, ph, pw)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, shape[-4], t * pt, h * ph, w * pw)
    x = x[..., : shape[-3], : shape[-2], : shape[-1]]
    return x if len(shape) == 5 else x[0]


def pack(samples: Sequence[Tensor], patch: Patch, times: Sequence[Sequence[int]] | None = None) -> Packed:
    """Patchify latents (C, T, H, W) of any sizes and lay them one after the other.

    `times`: for every sample the numbers of its T latent frames, 0 to T - 1 unless given.
    """
    if not samples:
        raise UserError("samples: nothing to pack; give at least one")
    parts = [patchify(sample, patch) for sample in samples]
    for (_, coords), frames in zip(parts, times or (), strict=bool(times)):
        numbers = torch.as_tensor(frames, device=coords.device)[:: patch[0]] // patch[0]
        coords[:, 0] = numbers[coords[:, 0]]
    lengths = torch.tensor([0] + [len(tokens) for tokens, _ in parts], device=samples[0].device)
    return Packed(
        tokens=torch.cat([tokens for tokens, _ in parts]),
        coords=torch.cat([coords for _, coords in parts]),
        cu_seqlens=lengths.cumsum(0),
        shapes=tuple((s.shape[0], s.shape[1], s.shape[2], s.shape[3]) for s in samples),
    )


def unpack(tokens: Tensor, packed: Packed, patch: Patch) -> list[Tensor]:
    """Tokens (N, D) in the layout of `packed` back to latents (C, T, H, W), one per sample."""
    parts = tokens.split(packed.cu_seqlens.diff().tolist())
    return [unpatchify(part, shape, patch) for part, shape in zip(parts, packed.shapes, strict=True)]
