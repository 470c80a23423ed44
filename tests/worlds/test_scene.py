"""The held-out split is strict, draws are reproducible, and a scene survives JSON."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worldline.worlds.scene import (
    CAMERAS,
    COLOURS,
    HELDOUT_PAIRS,
    KIND_SHARES,
    KINDS,
    MOTIONS,
    SHAPES,
    Scene,
    Thing,
    is_heldout,
    sample_scene,
)


def _shows_heldout(scene: Scene) -> bool:
    """The hold-out as it is documented, written a second time."""
    pairs = any((t.colour, t.shape) in HELDOUT_PAIRS for t in scene.things)
    motions = any((t.motion, t.shape) in {("bounce", "cone"), ("jump", "cylinder")} for t in scene.things)
    return pairs or motions or (scene.event == "hide" and scene.things[0].shape == "ball") or scene.count == 4


def test_split_is_strict_over_thousands_of_draws() -> None:
    rng = np.random.default_rng(0)
    assert not any(_shows_heldout(sample_scene(rng, "train")) for _ in range(2000))
    assert all(_shows_heldout(sample_scene(rng, "heldout")) for _ in range(1000))
    both = [_shows_heldout(sample_scene(rng, "any")) for _ in range(300)]
    assert any(both)
    assert not all(both)


def test_training_shows_every_colour_shape_motion_and_camera() -> None:
    """Only pairings are unknown: a model can have met every single word."""
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, "train") for _ in range(2500)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.motion for t in things} == set(MOTIONS)
    assert {s.camera for s in scenes} == set(CAMERAS)
    seen = {(t.colour, t.shape) for t in things}
    assert seen == {(c, s) for c in COLOURS for s in SHAPES} - HELDOUT_PAIRS


def test_heldout_pairs_are_balanced() -> None:
    """Every colour once and every shape twice, so that no colour or shape is rarer than another."""
    assert sorted(colour for colour, _ in HELDOUT_PAIRS) == sorted(COLOURS)
    assert all(sum(shape == s for _, s in HELDOUT_PAIRS) == 2 for shape in SHAPES)


def test_kinds_come_in_their_shares() -> None:
    assert sum(KIND_SHARES) == pytest.approx(1.0)
    assert len(KIND_SHARES) == len(KINDS)
    rng = np.random.default_rng(2)
    for kind, count in (("single", {1}), ("pair", {2}), ("three", {3}), ("group", {2, 3, 4})):
        assert {sample_scene(rng, "any", kind).count for _ in range(60)} == count


def test_same_seed_same_scene() -> None:
    draws = [[sample_scene(np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 20


def test_things_of_different_kinds_differ_in_colour() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = sample_scene(rng, "any")
        colours = {thing.colour for thing in scene.things}
        assert len(colours) == (1 if scene.group else scene.count)


def test_the_camera_moves_only_over_resting_things_on_a_pattern() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        scene = sample_scene(rng, "any", "camera")
        assert scene.camera != "static"
        assert scene.floor != "plain"
        assert all(thing.motion == "still" for thing in scene.things)


def test_json_round_trip() -> None:
    rng = np.random.default_rng(5)
    for kind in KINDS:
        scene = sample_scene(rng, "any", kind)
        assert Scene.from_json(scene.to_json()) == scene


def test_heldout_is_read_from_the_scene_alone() -> None:
    ball = Thing("ball", "red", "small", "right")
    assert not is_heldout(Scene((ball,)))
    assert is_heldout(Scene((dataclasses.replace(ball, shape="cylinder"),)))
    assert is_heldout(Scene((ball,), event="hide"))
    assert is_heldout(Scene((ball,) * 4, group=True))
    assert not is_heldout(Scene((ball,) * 3, group=True))


@pytest.mark.parametrize(("split", "kind", "word"), [("test", None, "split"), ("any", "none", "kind")])
def test_unknown_names_are_refused(split: str, kind: str | None, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        sample_scene(np.random.default_rng(0), split, kind)
