"""Joins: a cut shows, a clip cut out of one piece does not, and a loop closes where it was made to."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.eval.continuity import colour_drift, distances, join_ratio, loop_ratio


def turning(frames: int, start: float = 0.0, turns: float = 1.0) -> np.ndarray:
    """A wave that wanders through the picture, `turns` times in all."""
    phase = 2 * np.pi * (start + turns * np.arange(frames) / frames)
    x = np.linspace(0, 2 * np.pi, 48)
    wave = 128 + 90 * np.sin(x[None, None] + phase[:, None, None])
    return np.repeat(np.broadcast_to(wave, (frames, 32, 48))[..., None], 3, -1).round().astype(np.uint8)


def test_a_clip_of_one_piece_has_no_joins() -> None:
    clip = turning(32)
    assert abs(join_ratio(clip, [7, 20]) - 1) < 0.1
    cut = np.concatenate([turning(16), turning(16, start=0.4)])
    assert join_ratio(cut, [16]) > 2
    assert abs(distances(clip) - distances(clip).mean()).max() < 0.5


def test_a_loop_closes() -> None:
    assert loop_ratio(turning(32)) < 1.1
    assert loop_ratio(turning(32, turns=0.5)) > 5


def test_a_still_clip_is_no_division_by_zero() -> None:
    still = np.repeat(turning(1), 9, axis=0)
    assert join_ratio(still, [4]) == 0
    assert loop_ratio(still) == 0


def test_drift_is_of_the_ground_not_of_what_moves() -> None:
    clip = np.full((40, 32, 32, 3), 100, np.uint8)
    for t in range(40):
        clip[t, 8:16, t // 2 : t // 2 + 8] = 255
    assert colour_drift(clip) == 0
    clip[20:] += 5
    assert colour_drift(clip, [20]) == 5


def test_joins_outside_are_refused() -> None:
    for joins in ([0], [9], []):
        with pytest.raises(UserError, match="joins"):
            join_ratio(turning(9), joins)
    with pytest.raises(UserError, match="3 or more"):
        loop_ratio(turning(2))
