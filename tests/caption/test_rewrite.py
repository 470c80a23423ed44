"""Rewriting adds and never changes: whatever was stated is stated after it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from worldline.caption.rewrite import rewrite
from worldline.worlds.captions import caption, vocabulary
from worldline.worlds.facts import contradictions, read_facts
from worldline.worlds.scene import KINDS, sample_scene

FREEFORM = Path(__file__).parents[2] / "benchmarks" / "freeform_prompts.json"


@pytest.mark.parametrize("style", ["short", "paraphrase"])
def test_every_stated_fact_is_kept(style: str) -> None:
    rng = np.random.default_rng(3)
    changed = 0
    for i in range(280):
        prompt = caption(sample_scene(rng, "any", list(KINDS)[i % len(KINDS)]), rng, style)
        made = rewrite(prompt)
        assert contradictions(read_facts(prompt), read_facts(made.text)) == [], (prompt, made.text)
        changed += made.changed
    assert changed > 0.95 * 280


def test_facts_in_anyones_words_are_kept() -> None:
    for entry in json.loads(FREEFORM.read_text()):
        made = rewrite(entry["prompt"])
        assert contradictions(read_facts(entry["prompt"]), read_facts(made.text)) == [], made


def test_a_full_caption_in_the_words_of_the_training_set() -> None:
    made = rewrite("an aquamarine globe soars skyward")
    read = read_facts(made.text)
    assert (read.things[0].colour, read.things[0].shape, read.things[0].motion) == ("cyan", "ball", "rise")
    assert read.things[0].size
    assert read.floor
    assert read.sky
    assert set(made.text.replace(",", "").split()) <= set(vocabulary())
    assert rewrite("an aquamarine globe soars skyward") == made


@pytest.mark.parametrize("prompt", ["a dog runs on a beach", "two horses", "a blue car beside a red ball", "!"])
def test_what_the_worlds_do_not_know_stays(prompt: str) -> None:
    made = rewrite(prompt)
    assert made.text == prompt
    assert made.note


@pytest.mark.parametrize("prompt", ["two balls fall", "a red ball trundles enigmatically to the left"])
def test_what_the_grammar_cannot_say_keeps_its_words(prompt: str) -> None:
    assert rewrite(prompt).text.startswith(prompt + ", on a ")


@pytest.mark.parametrize(
    "prompt",
    [
        "w³ red balls",
        "٣ red balls",
        "9" * 5000 + " balls",
        "a ball that is",
        "a red cube, the camera zooms left",
        "\u3000",
    ],
)
def test_whatever_people_type_is_read(prompt: str) -> None:
    assert rewrite(prompt).prompt == prompt
