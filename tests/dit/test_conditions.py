"""Known latents and masks: what is known stands clean, the rest is untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.dit.conditions import (
    Conditions,
    driven,
    first_frame,
    frames_to_tokens,
    from_mask,
    known_frames,
    none,
    place_known,
    random_mask,
    random_start,
)
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


def test_what_drives_a_latent_frame_leads_to_its_frames() -> None:
    inputs = torch.arange(1.0, 15.0).reshape(7, 2)  # from frame f to f + 1
    rows = driven(inputs, [0, 1, 2, 3])
    assert rows.shape == (4, 9)
    assert rows[0].tolist() == [0] * 8 + [1]  # nothing acted before the picture
    assert rows[1].tolist() == [*range(1, 9), 1]
    assert rows[2].tolist() == [*range(9, 15), 0, 0, 1]  # nothing acts after the last
    assert rows[3].tolist() == [0] * 8 + [1]
    assert torch.equal(driven(inputs, [2, 1]), rows[[2, 1]])
    assert driven(inputs, []).shape == (0, 9)


def test_actions_follow_their_latent_frames() -> None:
    actions = driven(torch.randn(16, 2), range(5))
    conditions = Conditions(torch.zeros(SHAPE), torch.zeros(1, *SHAPE[1:]), actions)
    part = conditions.at([0, 3])
    assert part.actions is not None
    assert torch.equal(part.actions, actions[[0, 3]])
    assert part.known.shape == (4, 2, 6, 8)
    assert none(SHAPE).at([1]).actions is None
    tokens = frames_to_tokens(actions, SHAPE, (1, 2, 2))
    assert tokens.shape == (5 * 3 * 4, 9)
    assert torch.equal(tokens.view(5, 12, 9), actions[:, None].expand(5, 12, 9))


def test_a_random_start_is_known_and_never_all() -> None:
    rng = np.random.default_rng(0)
    starts = torch.stack([random_start(rng, SHAPE)[0, :, 0, 0] for _ in range(50)])
    assert (starts.diff(dim=1) <= 0).all()
    assert set(starts.sum(1).tolist()) == {1, 2, 3, 4}
    assert random_start(rng, (4, 1, 6, 8)).min() == 1
