"""Pictures agree with the geometry: ids with projection, sizes with each other, a scene with its bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worldline.worlds.physics import camera_at, project
from worldline.worlds.render import SCREEN_ID, render
from worldline.worlds.scene import KINDS, Scene, Thing, sample_scene

BALL = Scene((Thing("ball", "red", "large", "right", "slow", x=-0.4),))


def test_same_scene_same_bytes() -> None:
    scene = sample_scene(np.random.default_rng(0), "any", "pair")
    first, second = render(scene), render(scene)
    assert first.frames.tobytes() == second.frames.tobytes()
    assert first.ids.tobytes() == second.ids.tobytes()
    other = render(dataclasses.replace(scene, light=scene.light + 0.5))
    assert first.frames.tobytes() != other.frames.tobytes()


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (3, 17, 31), (5, 48, 80), (2, 90, 40), (2, 1, 1)])
def test_any_length_and_size(frames: int, height: int, width: int) -> None:
    clip = render(BALL, frames, height, width)
    assert clip.frames.shape == (frames, height, width, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.ids.shape == (frames, height, width)


def test_ids_of_a_ball_are_the_disc_that_projection_says() -> None:
    clip = render(BALL, 5, 96, 96)
    for t in range(5):
        (u, v, radius), *_ = project(camera_at("static", t / 4), clip.trajectory.positions[t], [0.70])
        rows, columns = np.nonzero(clip.ids[t] == 1)
        assert (columns.mean() + 0.5 - 48) / 48 == pytest.approx(u, abs=0.03)
        assert (48 - rows.mean() - 0.5) / 48 == pytest.approx(v, abs=0.03)
        assert np.sqrt(len(rows) / np.pi) / 48 == pytest.approx(radius, rel=0.05)


def test_ids_mark_the_objects_colour() -> None:
    clip = render(BALL)
    red = clip.frames[clip.ids == 1].astype(int)
    assert np.mean(red[:, 0] > red[:, 1] + 30) > 0.97
    ground = clip.frames[clip.ids == 0].astype(int)
    assert np.mean(np.ptp(ground, axis=1) < 45) > 0.95  # the setting is neutral


def test_every_kind_shows_its_things_and_only_hiding_a_screen() -> None:
    rng = np.random.default_rng(1)
    for kind in KINDS:
        scene = sample_scene(rng, "any", kind)
        ids = render(scene, 17, 48, 48).ids
        expected = set(range(scene.count + 1)) | ({SCREEN_ID} if scene.event == "hide" else set())
        assert set(np.unique(ids).tolist()) == expected
        shown = [(ids == i + 1).any((1, 2)).mean() for i in range(scene.count)]
        assert min(shown) > 0.3


def test_a_hidden_thing_vanishes_behind_the_screen_and_returns() -> None:
    scene = Scene((Thing("cube", "green", "small", "right", "fast", x=-1.5, z=-0.7),), event="hide")
    seen = (render(scene).ids == 1).sum((1, 2))
    assert seen[0] > 50
    assert seen[-1] > 50
    assert seen[8] == 0


def test_a_picture_of_twice_the_size_averages_to_the_small_one() -> None:
    scene = sample_scene(np.random.default_rng(3), "any", "single")
    small = render(scene, 3, 64, 64).frames.astype(float)
    large = render(scene, 3, 128, 128).frames.astype(float)
    averaged = large.reshape(3, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(averaged - small).mean() < 2.0


def test_nearer_things_cover_farther_ones() -> None:
    near, far = Thing("cube", "red", "small", z=0.8), Thing("ball", "blue", "large", z=-1.0)
    ids = render(Scene((far, near)), 1).ids[0]
    (u, v, _), *_ = project(camera_at("static", 0.5), np.array([[0.0, near.radius, near.z]]), [near.radius])
    assert ids[round(32 - v * 32), round(32 + u * 32)] == 2


def test_things_cast_shadows() -> None:
    lit = render(Scene((dataclasses.replace(BALL.things[0], x=50.0),)), 1).frames[0].astype(int)
    clip = render(BALL, 1)
    floor = clip.ids[0] == 0
    assert (lit[floor].sum(1) - clip.frames[0].astype(int)[floor].sum(1)).max() > 100
