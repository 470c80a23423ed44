"""Known latents and masks: what is known stands clean, the rest is untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.dit.conditions import first_frame, from_mask, known_frames, none, place_known, random_mask
from worldline.errors import UserError

SHAPE = (4, 5, 6, 8)


def test_first_frame_knows_the_first_frame_alone() -> None:
    latent = torch.randn(4, 1, 6, 8)
    conditions = first_frame(latent, 5)
    assert torch.equal(conditions.known[:, :1], latent)
    assert conditions.known[:, 1:].abs().sum() == 0
    assert conditions.mask[:, 0].min() == 1
    assert conditions.mask[:, 1:].max() == 0


def test_negative_frames_count_from_the_end() -> None:
    conditions = known_frames({0: torch.ones(4, 1, 6, 8), -2: torch.ones(4, 2, 6, 8)}, SHAPE)
    assert conditions.mask[0, :, 0, 0].tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("index", [5, -6])
def test_frames_outside_are_refused(index: int) -> None:
    with pytest.raises(UserError, match="known frame"):
        known_frames({index: torch.ones(4, 1, 6, 8)}, SHAPE)
    with pytest.raises(UserError, match="known frame"):
        known_frames({0: torch.ones(4, 1, 6, 7)}, SHAPE)


def test_place_known_keeps_known_clean_and_their_time_zero() -> None:
    conditions = first_frame(torch.randn(4, 1, 6, 8), 5)
    known, mask = conditions.tokens((1, 2, 2))
    noisy, time = torch.randn(known.shape), torch.full((len(known),), 0.7)
    tokens, timestep = place_known(noisy, time, known, mask)
    assert torch.equal(tokens[:12], known[:12])
    assert torch.equal(tokens[12:], noisy[12:])
    assert timestep.unique().tolist() == pytest.approx([0.0, 0.7])
    assert (timestep[:12] == 0).all()
    assert (timestep[12:] > 0).all()


def test_a_partly_known_token_keeps_its_time() -> None:
    mask = torch.zeros(1, *SHAPE[1:])
    mask[:, 0, 0, 0] = 1
    latents = torch.randn(SHAPE)
    known, cells = from_mask(latents, mask).tokens((1, 2, 2))
    noisy = torch.zeros_like(known)
    tokens, timestep = place_known(noisy, torch.full((len(known),), 0.5), known, cells)
    assert (timestep == 0.5).all()
    assert torch.equal(tokens[0].view(4, 4)[:, 0], latents[:, 0, 0, 0])
    assert tokens[0].view(4, 4)[:, 1:].abs().max() == 0


def test_nothing_known_changes_nothing() -> None:
    known, mask = none(SHAPE).tokens((1, 2, 2))
    noisy, time = torch.randn(known.shape), torch.rand(len(known))
    tokens, timestep = place_known(noisy, time, known, mask)
    assert torch.equal(tokens, noisy)
    assert torch.equal(timestep, time)


@pytest.mark.parametrize("shape", [SHAPE, (4, 1, 6, 8), (4, 2, 1, 1)])
def test_random_masks_are_binary_repeatable_and_leave_something_to_make(shape: tuple[int, ...]) -> None:
    masks = [random_mask(np.random.default_rng(seed), shape, nothing=0.3) for seed in range(200)]
    for seed, mask in enumerate(masks):
        assert mask.shape == (1, *shape[1:])
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert mask.min() == 0
        assert torch.equal(mask, random_mask(np.random.default_rng(seed), shape, nothing=0.3))
    if shape == SHAPE:
        empty = sum(mask.max() == 0 for mask in masks) / len(masks)
        assert 0.2 < empty < 0.5
        assert sum(mask[0, 0].min() == 1 and mask[0, 1:].max() == 0 for mask in masks) > 40
