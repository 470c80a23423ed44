"""Latents survive the way to tokens and back, at any size."""

from __future__ import annotations

import pytest
import torch

from worldline.dit.patchify import pack, patchify, unpack, unpatchify
from worldline.errors import UserError

SHAPES = [(16, 5, 8, 8), (3, 1, 4, 6), (2, 3, 5, 7), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2), (1, 1, 1)])
def test_round_trip(shape: tuple[int, int, int, int], patch: tuple[int, int, int]) -> None:
    latents = torch.randn(shape)
    tokens, coords = patchify(latents, patch)
    assert len(tokens) == len(coords) == len(coords.unique(dim=0))
    assert torch.equal(unpatchify(tokens, shape, patch), latents)


def test_a_batch_is_its_samples_one_after_the_other() -> None:
    batch = torch.randn(3, 4, 2, 4, 6)
    tokens, coords = patchify(batch, (1, 2, 2))
    parts = [patchify(sample, (1, 2, 2)) for sample in batch]
    assert torch.equal(tokens, torch.cat([t for t, _ in parts]))
    assert torch.equal(coords, torch.cat([c for _, c in parts]))
    assert torch.equal(unpatchify(tokens, batch.shape, (1, 2, 2)), batch)


def test_token_holds_the_patch_its_coordinates_name() -> None:
    latents = torch.arange(2 * 2 * 4 * 6).view(2, 2, 4, 6)
    tokens, coords = patchify(latents, (1, 2, 2))
    for token, (t, h, w) in zip(tokens, coords.tolist(), strict=True):
        assert torch.equal(token, latents[:, t : t + 1, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten())


def test_pack_and_unpack_samples_of_any_sizes() -> None:
    samples = [torch.randn(4, *size) for size in [(5, 8, 8), (1, 4, 6), (3, 5, 3)]]
    packed = pack(samples, (1, 2, 2))
    assert packed.cu_seqlens.tolist() == [0, 80, 86, 104]
    for got, sample in zip(unpack(packed.tokens, packed, (1, 2, 2)), samples, strict=True):
        assert torch.equal(got, sample)


def test_wrong_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="latents"):
        patchify(torch.zeros(2, 3), (1, 2, 2))
    with pytest.raises(UserError, match="nothing to pack"):
        pack([], (1, 2, 2))
