"""Captions say what scenes show: distinct scenes read differently, and no word lies outside the vocabulary."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worldline.worlds.captions import CAMERA_WORDS, COLOUR_WORDS, SHAPE_WORDS, STYLES, caption, vocabulary
from worldline.worlds.scene import CAMERAS, KINDS, Scene, Thing, sample_scene


def _meaning(scene: Scene) -> tuple:
    """What a short caption must settle: who, doing what, how fast, in which order, seen by which camera."""

    def said(thing: Thing) -> tuple[str, ...]:
        return (thing.colour, thing.shape, thing.motion, "" if scene.event else thing.speed)

    things = list(scene.things)
    if not scene.group and all(thing.motion == "still" for thing in things):
        things.sort(key=lambda thing: thing.x)
    elif not scene.group:
        things[1:] = sorted(things[1:], key=said)
    return (scene.event, scene.camera, scene.group, tuple(map(said, things)))


def test_a_short_caption_names_one_meaning() -> None:
    rng = np.random.default_rng(0)
    meanings: dict[str, tuple] = {}
    for i in range(1500):
        scene = sample_scene(rng, "any", list(KINDS)[i % len(KINDS)])
        meaning = _meaning(scene)
        assert meanings.setdefault(caption(scene, rng, "short"), meaning) == meaning


@pytest.mark.parametrize(
    "change", [{"shape": "cube"}, {"colour": "pink"}, {"motion": "left"}, {"motion": "bounce"}, {"speed": "fast"}]
)
def test_each_attribute_is_said(change: dict[str, str]) -> None:
    thing = Thing("ball", "red", "small", "right", "slow")
    rng = np.random.default_rng(0)
    other = Scene((dataclasses.replace(thing, **change),))  # type: ignore[arg-type]
    assert caption(Scene((thing,)), rng, "short") != caption(other, rng, "short")


def test_counts_and_cameras_are_said() -> None:
    thing = Thing("cube", "blue", "small")
    rng = np.random.default_rng(0)
    said = {caption(Scene((thing,), camera=camera), rng, "short") for camera in CAMERAS}
    said |= {caption(Scene((thing,) * n, group=True), rng, "short") for n in (2, 3, 4)}
    assert len(said) == len(CAMERAS) + 3
    assert set(CAMERA_WORDS) == set(CAMERAS) - {"static"}


def test_the_vocabulary_is_closed() -> None:
    known = set(vocabulary())
    rng = np.random.default_rng(1)
    for i in range(2000):
        text = caption(sample_scene(rng, "any"), rng, STYLES[i % len(STYLES)])
        assert set(text.replace(",", " ").split()) <= known, text


def test_the_same_generator_state_says_the_same() -> None:
    scene = sample_scene(np.random.default_rng(2), "any", "pair")
    said = [caption(scene, np.random.default_rng(7), "dense") for _ in range(2)]
    assert said[0] == said[1]


def test_short_is_plain_and_paraphrases_are_many() -> None:
    scene = Scene((Thing("ball", "red", "small", "right"),))
    rng = np.random.default_rng(3)
    assert {caption(scene, rng, "short") for _ in range(20)} == {"a red ball rolls to the right"}
    assert len({caption(scene, rng) for _ in range(300)}) > 100


def test_every_caption_names_each_colour_and_shape() -> None:
    rng = np.random.default_rng(4)
    for i in range(600):
        scene = sample_scene(rng, "any")
        text = caption(scene, rng, STYLES[i % len(STYLES)])
        for thing in scene.things:
            assert any(word in text for word in COLOUR_WORDS[thing.colour]), text
            assert any(word in text for word in SHAPE_WORDS[thing.shape]), text


def test_no_synonym_means_two_things() -> None:
    for table in (COLOUR_WORDS, SHAPE_WORDS):
        words = [word for options in table.values() for word in options]
        assert len(words) == len(set(words))


def test_dense_captions_say_size_and_setting() -> None:
    rng = np.random.default_rng(5)
    scene = Scene((Thing("cone", "green", "large"),), floor="tiled", floor_colour="beige", sky="dusk")
    for _ in range(20):
        text = caption(scene, rng, "dense")
        assert any(word in text for word in ("large", "big", "huge"))
        assert "tiled" in text
        assert "sky" in text


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style"):
        caption(Scene((Thing("ball", "red", "small"),)), np.random.default_rng(0), "long")
