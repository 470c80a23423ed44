"""Cuts tensors of video for tests of streams."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def pieces(x: Tensor, lengths: list[int]) -> Iterator[Tensor]:
    """Frames of (B, C, T, H, W) in pieces of the given lengths, the rest in one."""
    for length in lengths:
        yield x[:, :, :length]
        x = x[:, :, length:]
    if x.shape[2]:
        yield x
