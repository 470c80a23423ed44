"""What is measured of driven worlds: the truth is exact, other pushes lead elsewhere, and a lost thing is far."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.eval import rollout
from worldline.eval.worlds import MODEL
from worldline.worlds.render import render
from worldline.worlds.scene import PUSH_RATE

LENGTHS = (17, 49)


def test_cases_are_pure() -> None:
    cases = rollout.sample_cases(4, 1)
    assert cases == rollout.sample_cases(4, 1) != rollout.sample_cases(4, 2)
    assert all(len(case.scene.pushes) >= max(rollout.LENGTHS) - 1 for case in cases)
    with pytest.raises(UserError, match="--n"):
        rollout.sample_cases(1, 1)


def test_pushes_are_said_as_they_are() -> None:
    assert rollout.said("rrnnnl") == [("right", 2 / PUSH_RATE), ("none", 3 / PUSH_RATE), ("left", 1 / PUSH_RATE)]


def test_the_truth_is_near_and_floors_are_far(tmp_path) -> None:
    cases = iter(rollout.sample_cases(4, 0, max(LENGTHS)))

    def truth(image, prompt, pushes, seed):
        scene = next(cases).scene
        assert sum(seconds for _, seconds in pushes) == (max(LENGTHS) - 1) / PUSH_RATE
        return render(scene, max(LENGTHS), 64, 64, PUSH_RATE).frames

    results = rollout.run_rollouts(truth, 4, 0, LENGTHS, reconstruct=lambda frames: frames, out=tmp_path)
    for length in LENGTHS:
        assert max(results.errors[MODEL][length]) < 1e-6
        assert results.near(MODEL, length).share == 1
        assert all(results.same[MODEL][length])
    for floor in (rollout.OTHER, rollout.STILL):
        assert np.median(results.errors[floor][49]) > rollout.NEAR
    assert "floor: other pushes" in results.table()
    assert (tmp_path / "rollouts.png").exists()
    assert (tmp_path / "report.json").exists()


def test_a_lost_thing_is_far() -> None:
    results = rollout.run_rollouts(lambda *_: np.zeros((17, 64, 64, 3), np.uint8), 2, 0, (17,))
    assert results.errors[MODEL][17] == [np.inf, np.inf]
    assert results.same[MODEL][17] == [False, False]
    assert results.near(MODEL, 17).right == 0
