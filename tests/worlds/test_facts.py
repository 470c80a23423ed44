"""Sentences are read as they were meant: what the grammar says of a scene is true of it, and nothing is invented."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worldline.worlds.captions import STYLES, caption
from worldline.worlds.facts import Facts, Said, contradictions, facts_of, read_facts
from worldline.worlds.scene import KINDS, sample_scene


@pytest.mark.parametrize("style", STYLES)
def test_what_a_caption_says_is_true_of_its_scene(style: str) -> None:
    rng = np.random.default_rng(7)
    for i in range(350):
        scene = sample_scene(rng, "any", list(KINDS)[i % len(KINDS)])
        text = caption(scene, rng, style)
        read = read_facts(text)
        assert not contradictions(read, facts_of(scene)), text
        assert not read.loose, text


def test_a_full_caption_says_everything() -> None:
    rng = np.random.default_rng(8)
    for i in range(350):
        scene = sample_scene(rng, "any", list(KINDS)[i % len(KINDS)])
        text = caption(scene, rng, "full")
        assert not contradictions(facts_of(scene), read_facts(text)), text


def test_every_change_of_a_scene_is_noticed() -> None:
    rng = np.random.default_rng(9)
    for _ in range(200):
        scene, other = sample_scene(rng), sample_scene(rng)
        one, two = read_facts(caption(scene, rng, "full")), read_facts(caption(other, rng, "full"))
        assert bool(contradictions(one, two)) or facts_of(scene) == facts_of(other)


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("A scarlet die plummets.", (Said("cube", "red", motion="fall"),)),
        ("to the left rolls a tiny golden orb, gently", (Said("ball", "yellow", "small", "left", "slow"),)),
        ("two red balls fall", (Said("ball", "red", motion="fall", count=2),)),
        ("a red ball and a blue cube fall", (Said("ball", "red", motion="fall"), Said("cube", "blue", motion="fall"))),
        ("the ball that is teal hops", (Said("ball", "cyan", motion="jump"),)),
        ("a mauve soup tin drifts toward the left", (Said("cylinder", "purple", motion="left"),)),
        ("a ball does not move", (Said("ball", motion="still"),)),
        ("beside a green cone, a pink cube spins", (Said("cone", "green"), Said("cube", "pink", motion="spin"))),
    ],
)  # fmt: skip
def test_people_say_it_otherwise(text: str, things: tuple[Said, ...]) -> None:
    assert read_facts(text).things == things


def test_rooms_cameras_and_events() -> None:
    read = read_facts(
        "The view zooms in closer: a red ball is struck by a large blue cube from the left, on a striped floor"
    )
    assert (read.camera, read.event, read.floor, read.sky) == ("zoom in", "collide", "striped", "")
    assert read.things[0] == Said("cube", "blue", "large", "right")
    assert read_facts("a red ball goes left and passes behind a wall").event == "hide"
    assert read_facts("an orange cube is to the right of a red cone").arrangement == "red cone | orange cube"
    assert read_facts("a ball bounces on the floor").floor == ""


def test_facts_outside_the_world_are_still_facts() -> None:
    before = read_facts("3 blue cars drive past a red house")
    assert not before.things
    assert before.loose == ("3", "blue", "red")
    assert contradictions(before, read_facts("two blue cars drive past a red house")) == ["said: 3"]
    assert not contradictions(before, read_facts("3 shiny blue cars drive past a tall red house"))


def test_contradictions_name_what_changed() -> None:
    before = Facts((Said("ball", "red", motion="left"),), camera="pan left")
    moved = dataclasses.replace(before, things=(Said("ball", "red", motion="right"),))
    assert contradictions(before, moved) == ["motion of the red ball: left, not right"]
    assert contradictions(before, dataclasses.replace(before, camera="")) == ["camera: pan left, not said"]
    assert contradictions(before, dataclasses.replace(before, things=())) != []
    assert contradictions(Facts((Said("ball"),)), before) == []
