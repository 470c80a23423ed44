"""The checks of the simulator hold on the world itself and fail on what is no world."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.eval import simulator
from worldline.eval.runner import GROUND_TRUTH, SPOILT, run_worlds
from worldline.worlds.render import render

CASES = simulator.sample_cases(36, seed=3)


@pytest.fixture(scope="module")
def truths() -> list[np.ndarray]:
    return [render(case.scene).frames for case in CASES]


def test_cases_are_pure_and_of_every_kind() -> None:
    assert simulator.sample_cases(36, seed=3) == CASES
    assert {case.scene.event for case in CASES} == {"", "hide", "collide"}
    assert any(case.scene.camera != "static" for case in CASES)
    assert {"fall", "bounce"} <= {case.scene.things[0].motion for case in CASES}
    assert any(case.seen for case in CASES)


def test_the_world_passes_and_its_shuffled_frames_do_not(truths: list[np.ndarray]) -> None:
    report = run_worlds(lambda p, s: truths[: len(p)], cases=CASES[:12], verifier=simulator, spoil=simulator.shuffled)
    every = {"identity", "framing", "permanence", "constancy", "collision", "camera", "gravity", "restitution", "all"}
    assert set(report.attributes) == every
    whole = run_worlds(lambda p, s: [truths[i] for i in s], cases=CASES, verifier=simulator, spoil=simulator.shuffled)
    truth, spoilt = whole.rates(GROUND_TRUTH)["everything"], whole.rates(SPOILT)["everything"]
    for name in every - {"all", "framing"}:
        assert truth[name].share >= 0.9, (name, str(truth[name]))
    for name in ("gravity", "restitution"):  # a collision is read from where things begin and end
        assert spoilt[name].share <= 0.4, (name, str(spoilt[name]))


def test_vanishing_and_changing_are_noticed(truths: list[np.ndarray]) -> None:
    index = next(i for i, case in enumerate(CASES) if case.scene.count == 1 and case.scene.things[0].motion == "fall")
    scene, clip = CASES[index].scene, truths[index].copy()
    assert simulator.judge(simulator.read(clip, 16), scene)["identity"]
    background = np.median(clip[..., :4, :, :], axis=(0, 1, 2)).astype(np.uint8)
    gone = clip.copy()
    gone[11:] = background
    right = simulator.judge(simulator.read(gone, 16), scene)
    assert not right["identity"]
    assert not right["constancy"]
    other = clip.copy()
    other[9:] = other[9:, :, :, ::-1]  # another colour from the middle on
    assert not simulator.judge(simulator.read(other, 16), scene)["identity"]


def test_an_empty_video_shows_nothing() -> None:
    look = simulator.read(np.full((17, 64, 64, 3), 120, np.uint8), 16)
    assert (look.reading.count, look.steady, look.inside) == (0, 0.0, 0.0)
    scene = simulator.sample_cases(2, 0)[1].scene
    assert not simulator.judge(look, scene)["identity"]
