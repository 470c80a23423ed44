"""A short prompt becomes a caption of the kind that a model was trained on; no fact that the user stated changes.

The shipped model's world needs no language model: the prompt is read (`worlds.facts`), what it leaves open is drawn
from its own words, and the grammar of the training captions says it. A prompt with a word that was not understood keeps
its words, and only the room is added. Prompts about anything else go to a language model. Whoever writes, the answer is
read back; one that loses or changes a fact is asked for again, then refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from worldline.caption.captioner import Ways
from worldline.worlds.captions import caption, in_order
from worldline.worlds.facts import Facts, Said, contradictions, read_facts, unread
from worldline.worlds.scene import FLOOR_COLOURS, FLOORS, SIZES, SKIES, Scene, Thing

Write = Callable[[str], str]  # request -> answer of a language model
ATTEMPTS = 3
REQUEST = (
    "Rewrite the prompt of a text-to-video model as one dense caption of at most 90 words: the things with their "
    "colours, numbers and sizes, what each does and in which direction, the setting, the light, and the camera. Keep "
    "every fact of the prompt as it is, in the prompt's own words where you can: no other colours, numbers, directions "
    "or things. Answer with the caption alone.\n\nPrompt: "
)


@dataclass(frozen=True)
class Rewritten:
    """`text` is the prompt itself where nothing could be added; `by` names who wrote, `note` says why it stayed."""

    prompt: str
    text: str
    by: str
    note: str = ""

    @property
    def changed(self) -> bool:
        return self.text != self.prompt


def rewrite(prompt: str, write: Write | None = None, by: str = "worldline") -> Rewritten:
    """The prompt as a full caption: by a language model where `write` is given, else by the grammar of the worlds."""
    stated = read_facts(prompt)
    if write is None:
        return _by_grammar(prompt, stated)
    lost: list[str] = []
    for _ in range(ATTEMPTS):
        told = "".join(f"\nDo not change this: {line}." for line in lost)
        text = write(REQUEST + prompt + told)
        lost = contradictions(stated, read_facts(text))
        if text and not lost:
            return Rewritten(prompt, text, by)
    return Rewritten(prompt, prompt, by, f"the answer changed what was said ({'; '.join(lost[:2])})")


def _by_grammar(prompt: str, stated: Facts) -> Rewritten:
    if not stated.things or stated.loose:
        return Rewritten(prompt, prompt, "worldline", "it is about more than the worlds that the shipped model knows")
    scene = None if unread(prompt) else _scene(stated, _rng(prompt))
    text = caption(scene, np.random.default_rng(0), "full") if scene else ""
    if text and not contradictions(stated, read_facts(text)):
        return Rewritten(prompt, text, "worldline")
    return _with_setting(prompt, stated)


def _with_setting(prompt: str, stated: Facts) -> Rewritten:
    """What the grammar cannot say stays in the user's words; only the room is added."""
    scene = _in_room(Scene((Thing("ball", "red", "small"),)), stated, _rng(prompt))
    room = caption(scene, np.random.default_rng(0), "full").split(", ")[-1]
    text = f"{prompt.rstrip(' .,')}, {room}"
    known = stated.floor or stated.floor_colour or stated.sky
    if known or contradictions(stated, read_facts(text)):
        return Rewritten(prompt, prompt, "worldline", "nothing can be added without changing it")
    return Rewritten(prompt, text, "worldline")


def _rng(prompt: str) -> np.random.Generator:
    """What is left open follows from the prompt alone: the same prompt, the same caption."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little"))


def _in_room(scene: Scene, stated: Facts, rng: np.random.Generator) -> Scene:
    floors = FLOORS[1:] if stated.camera else FLOORS  # a plain floor hides the camera's motion
    floor, colour, sky = (str(rng.choice(list(names))) for names in (floors, FLOOR_COLOURS, SKIES))
    return replace(
        scene,
        camera=stated.camera or "static",
        floor=stated.floor or floor,
        floor_colour=stated.floor_colour or colour,
        sky=stated.sky or sky,
    )


def _scene(stated: Facts, rng: np.random.Generator) -> Scene | None:
    """A scene of which everything stated is true; None where the worlds have none (no colour said, seven things)."""
    things = [_thing(said, stated, rng) for said in stated.things]
    if not all(thing.shape and thing.colour for thing in things) or stated.count > 4:
        return None
    group = len(things) == 1 and stated.things[0].count > 1
    if (stated.count > len(things) and not group) or (stated.event == "collide") > (len(things) > 1):
        return None
    things = things * stated.things[0].count if group else things
    if stated.arrangement:
        places = stated.arrangement.split(" | ")
        if len(places) == 3:  # two ends, then what stands between them
            places = [places[0], places[2], places[1]]
        if sorted(places) != sorted(f"{t.colour} {t.shape}" for t in things):
            return None
        things = [replace(thing, x=float(places.index(f"{thing.colour} {thing.shape}"))) for thing in things]
    if stated.event and not stated.things[0].motion:  # what hits or hides comes from somewhere
        things[0] = replace(things[0], motion=str(rng.choice(("left", "right"))))
    return _in_room(in_order(Scene(tuple(things), stated.event, group=group)), stated, rng)


def _thing(said: Said, stated: Facts, rng: np.random.Generator) -> Thing:
    size = str(rng.choice(list(SIZES)))
    return Thing(said.shape, said.colour, said.size or size, said.motion or "still", said.speed)


def writer_of(name: str | None, ways: Ways | None = None) -> tuple[Write | None, str]:
    """The language model at an address or in a folder and its name; none for the grammar of the worlds."""
    if name is None:
        return None, "worldline"
    if name.startswith(("http://", "https://")):
        from worldline.caption.endpoint import Endpoint

        endpoint = Endpoint(name, ways or Ways())
        return endpoint.chat, endpoint.model
    from worldline.caption.local import LocalWriter

    writer = LocalWriter(Path(name))
    return writer, writer.model
