"""Synonyms: every reading is the grammar's own language, and every word has one reading."""

from __future__ import annotations

import pytest

from worldline.worlds.captions import COLOUR_WORDS, SHAPE_WORDS, vocabulary
from worldline.worlds.synonyms import _pairs, inflections, plural, synonyms


def test_readings_are_words_of_the_grammar() -> None:
    known = vocabulary()
    readings = synonyms(known)
    assert len(readings) > 500
    assert not readings.keys() & set(known), "the grammar's words mean what they say"
    assert {word for reading in readings.values() for word in reading.split()} <= set(known)


def test_no_table_names_a_reading_that_the_grammar_lost() -> None:
    known = set(vocabulary())
    assert {word for reading, _ in _pairs() for word in reading.split()} <= known


def test_a_name_has_one_meaning() -> None:
    """A colour or shape word that stood under two headings would be read by the order of the table."""
    names = [word for reading, word in _pairs() if reading in COLOUR_WORDS or reading in SHAPE_WORDS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("word", "reading"),
    [("maroon", "red"), ("dice", "cube"), ("barrels", "cylinders"), ("levitating", "rises"), ("hopping", "jumps"),
     ("hid", "passes"), ("reappears", "comes out again"), ("bounced", "bounces"), ("leftward", "leftwards")],
)  # fmt: skip
def test_examples(word: str, reading: str) -> None:
    assert synonyms(vocabulary())[word] == reading


def test_without_the_word_there_is_no_reading() -> None:
    assert synonyms(["red"])["maroon"] == "red"
    assert "jade" not in synonyms(["red"])


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("hop", {"hop", "hops", "hoping", "hopping", "hoped", "hopped"}),
        ("glide", {"glide", "glides", "gliding", "glided"}),
        ("hurry", {"hurry", "hurries", "hurrying", "hurried"}),
        ("push", {"push", "pushes", "pushing", "pushed"}),
    ],
)
def test_inflections(verb: str, forms: set[str]) -> None:
    assert inflections(verb) == forms


def test_plural() -> None:
    assert [plural(word) for word in ("dice", "die", "box", "column")] == ["dice", "dies", "boxes", "columns"]
