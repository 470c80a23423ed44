"""Gravity and restitution read from renders whose physics is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldline.eval.physics import gravity, restitution, size_drift
from worldline.worlds.render import render
from worldline.worlds.scene import Scene, Thing


def scene(motion: str, x: float = 0.0, z: float = 0.0, size: str = "small", shape: str = "ball") -> Scene:
    return Scene((Thing(shape, "red", size, motion, x=x, z=z),))


@pytest.mark.parametrize("motion", ["fall", "bounce", "jump"])
def test_gravity_is_the_same_wherever_a_thing_falls(motion: str) -> None:
    values = [gravity(render(scene(motion, x, z)).frames, 16) for x, z in ((0.0, 0.0), (0.4, 0.3), (-0.3, -1.0))]
    assert all(value is not None for value in values)
    assert max(values) / min(values) < 1.2


def test_weaker_gravity_is_read_as_weaker() -> None:
    """The same fall at half the speed has a quarter of the acceleration."""
    truth = gravity(render(scene("fall")).frames, 16)
    slow = gravity(render(scene("fall"), 33, fps=32).frames, 16)
    assert slow / truth == pytest.approx(0.25, rel=0.2)


def test_restitution_of_a_bounce() -> None:
    for shape in ("ball", "cube"):
        assert restitution(render(scene("bounce", shape=shape)).frames) == pytest.approx(0.82, abs=0.08)
    assert restitution(render(scene("fall")).frames) is None  # it stays where it falls


def test_nothing_flies_where_nothing_falls() -> None:
    for motion in ("still", "right", "spin"):
        thing = replace(scene(motion).things[0], shape="cube" if motion == "spin" else "ball")
        assert gravity(render(Scene((thing,))).frames, 16) is None
    assert gravity(np.full((9, 64, 64, 3), 128, np.uint8), 16) is None
    assert restitution(np.full((9, 64, 64, 3), 128, np.uint8)) is None


def test_size_drift_is_how_fast_a_thing_grows() -> None:
    grows, rests = (render(scene(motion), 65).frames for motion in ("toward", "still"))
    assert abs(size_drift(rests, 16)) < 0.01
    assert size_drift(grows, 16) > 0.05
    assert np.isnan(size_drift(np.full((9, 64, 64, 3), 128, np.uint8), 16))
