"""Reads a sentence about the world: which things it names and what it says of each, of the camera and of the room.

What is not said stays empty. `contradictions` holds two sentences against each other: nothing that the first one states
may be missing from the second. Words outside the world's (a car, a beach) are not understood, but colours, numbers and
directions beside them still count as `loose` facts.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from worldline.worlds import captions
from worldline.worlds.captions import NUMBERS, vocabulary
from worldline.worlds.scene import TRAVELS, Scene
from worldline.worlds.synonyms import plural, synonyms

SPOKEN = ("colour", "shape", "size", "count", "motion", "speed")  # of a thing
ROOM = ("event", "camera", "floor", "floor_colour", "sky", "arrangement")


@dataclass(frozen=True)
class Said:
    """What a sentence says of one thing, or of `count` equal ones."""

    shape: str = ""
    colour: str = ""
    size: str = ""
    motion: str = ""
    speed: str = ""
    count: int = 1


@dataclass(frozen=True)
class Facts:
    """What a sentence says. `arrangement` joins things from left to right; `loose` are colours, numbers and directions
    that belong to no thing of the world."""

    things: tuple[Said, ...] = ()
    event: str = ""
    camera: str = ""
    floor: str = ""
    floor_colour: str = ""
    sky: str = ""
    arrangement: str = ""
    loose: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many things there are."""
        return sum(thing.count for thing in self.things)


def contradictions(before: Facts, after: Facts) -> list[str]:
    """What `before` states and `after` does not, one line each; empty where every fact is kept."""
    lines = [
        f"{name.replace('_', ' ')}: {getattr(before, name)}, not {getattr(after, name) or 'said'}"
        for name in ROOM
        if getattr(before, name) and getattr(before, name) != getattr(after, name)
    ]
    if before.things and before.count != after.count:
        lines.append(f"count: {before.count}, not {after.count}")
    for one, other in pairs(before.things, after.things):
        for name in SPOKEN:
            stated, found = getattr(one, name), getattr(other, name) if other else ""
            if stated and stated != found:
                lines.append(f"{name} of the {one.colour} {one.shape}: {stated}, not {found or 'said'}")
    missing = Counter(before.loose) - Counter(after.loose)
    return lines + [f"said: {word}" for word in missing.elements()]


def pairs(before: tuple[Said, ...], after: tuple[Said, ...]) -> list[tuple[Said, Said | None]]:
    """Every thing of `before` with the one of `after` that is most like it, or None."""
    if not before or not after:
        return [(thing, None) for thing in before]
    weights = {"colour": 8, "shape": 4, "motion": 2, "size": 1, "count": 1}
    alike = np.array(
        [[sum(w * (getattr(a, n) == getattr(b, n)) for n, w in weights.items()) for b in after] for a in before]
    )
    best = dict(zip(*linear_sum_assignment(-alike), strict=True))
    return [(thing, after[best[i]] if i in best else None) for i, thing in enumerate(before)]


def facts_of(scene: Scene) -> Facts:
    """What a full caption of the scene says."""
    first = scene.things[0]
    camera = "" if scene.camera == "static" else scene.camera
    things = [Said(t.shape, t.colour, t.size, t.motion, t.speed) for t in scene.things]
    arrangement = ""
    if scene.group:
        things = [dataclasses.replace(things[0], count=scene.count)]
    elif scene.event:
        things = [dataclasses.replace(t, speed="", motion=first.motion if t is things[0] else "") for t in things]
    elif scene.count > 1 and all(t.motion == "still" for t in scene.things):
        ordered = sorted(scene.things, key=lambda thing: thing.x)
        ends = [f"{t.colour} {t.shape}" for t in ordered]
        arrangement = " | ".join(ends if len(ends) == 2 else [*sorted((ends[0], ends[2])), ends[1]])
        things = [dataclasses.replace(t, motion="") for t in things]
    elif scene.count > 1:
        things = [dataclasses.replace(t, motion="" if t.motion == "still" else t.motion) for t in things]
    return Facts(
        tuple(things), scene.event, camera, scene.floor, scene.floor_colour, scene.sky, arrangement=arrangement
    )


def read_facts(text: str) -> Facts:
    """What `text` says, in anyone's words."""
    words = " ".join(_canonical(text))
    room: dict[str, str] = {}
    for pattern in _ROOM.values():
        if match := pattern.search(words):
            room |= {key: value for key, value in match.groupdict().items() if value}
            words = words[: match.start()] + " , " + words[match.end() :]
    if match := _CAMERA.search(words):
        verb, way = match["verb"].removesuffix("s"), match["way"]
        verb = "pan" if verb in ("move", "goe", "travel", "glide") else "orbit" if verb == "circle" else verb
        camera = f"{verb} {'in' if way == 'closer' else way}"
        if camera in captions.CAMERA_WORDS:  # no camera zooms left
            room["camera"] = camera
            words = words[: match.start()] + " , " + words[match.end() :]
    reader = _Reader(words.split())
    reader.read()
    return reader.facts(room)


def unread(text: str) -> list[str]:
    """Words of `text` that the world's grammar does not know, so that what they say may be no fact here."""
    known = set(vocabulary()) | set(_phrases()[1].values()) | set(_KIND) | _STRUCTURE
    return [word for word in _canonical(text) if word.isalpha() and word not in known]


_ROOM = {
    "floor": re.compile(
        r"(?:(?:on|over) )?(?:a |the )?(?:(?P<floor>plain|checkered|striped|tiled) )?"
        r"(?:(?P<floor_colour>grey|white|beige|dark) )?floor(?<!the floor)"
    ),
    "sky": re.compile(r"(?:under )?(?:a |the )?(?P<sky>pale|dark|dusk) sky"),
}
_CAMERA = re.compile(
    r"(?:while |as )?(?:the )?(?:(?:camera|view) )?"
    r"(?P<verb>pans?|zooms?|orbits?|circles?|(?<=camera )(?:moves|goes|travels|glides))"
    r"(?: to| around| it| the| side)* (?P<way>left|right|in|out|closer)(?: closer| around| it| on)*"
)


@cache
def _phrases() -> tuple[re.Pattern[str], dict[str, str]]:
    """Longest phrases first -> the one word that stands for them."""
    table: dict[str, str] = {}
    for names in (captions.COLOUR_WORDS, captions.SIZE_WORDS, captions.FLOOR_WORDS, captions.FLOOR_COLOUR_WORDS):
        table |= {phrase: name for name, options in names.items() for phrase in options}
    for name, options in captions.SHAPE_WORDS.items():
        table |= {phrase: name for phrase in options}
        table |= {captions._plural(phrase): f"{name}s" for phrase in options}
    table |= {f"{phrase} sky": f"{name} sky" for name, options in captions.SKY_WORDS.items() for phrase in options}
    table |= {word: str(n) for n, word in NUMBERS.items()}
    table |= {"slowly": "<slow>", "gently": "<slow>", "at a slow pace": "<slow>", "quickly": "<fast>", "fast": "<fast>"}
    table |= {"at high speed": "<fast>", "rolls like a balloon": "rises", "can not": "not", "in front of": "beside"}
    table |= {"to the left of": "<left-of>", "to the right of": "<right-of>", "left of": "<left-of>"}
    table |= {"right of": "<right-of>", "from left to right": "right", "from the left to the right": "right"}
    table |= {"from right to left": "left", "from the right to the left": "left", "dusky sky": "dusk sky"}
    table |= {"from the left": "<from-left>", "from the right": "<from-right>", "a pair of": "2", "look like": "is"}
    for colour in captions.COLOUR_WORDS:
        table |= {f"{colour} coloured": colour, f"{colour} colored": colour}
    pattern = "|".join(re.escape(phrase) for phrase in sorted(table, key=len, reverse=True))
    return re.compile(rf"(?<![\w<])(?:{pattern})(?![\w>])"), table


@cache
def _foreign() -> dict[str, str]:
    return synonyms(vocabulary())


def _canonical(text: str) -> list[str]:
    """Words of the sentence, foreign ones read as the grammar's, phrases as one word; commas are kept."""
    found = re.findall(r"[^\W_]+(?:'[^\W_]+)?|[,.;:]", text.lower())
    foreign = _foreign()
    words = " ".join("," if word in ",.;:" else foreign.get(word, word) for word in found)
    pattern, table = _phrases()
    for _ in range(2):  # "crimson coloured" is a phrase of a phrase
        words = pattern.sub(lambda match: table[match[0]], words)
    return words.split()


_SHAPES = {name: (name, False) for name in captions.SHAPE_WORDS}
_SHAPES |= {plural(name): (name, True) for name in captions.SHAPE_WORDS}
_TRAVEL = "move go travel glide head roll slide come make push pass reach cross"
_VERBS = {
    "bounce": "bounce rebound", "jump": "jump hop leap", "spin": "spin rotate twirl turn",
    "rise": "rise float lift ascend", "fall": "fall drop plunge land", "toward": "approach",
    "away": "recede retreat", "still": "rest sit stay stand", "travel": _TRAVEL,
}  # fmt: skip
_WAYS = {
    "left": "left leftwards", "right": "right rightwards", "toward": "toward closer forward",
    "away": "away distance backward", "up": "up upward upwards", "down": "down",
}  # fmt: skip
_KIND = {f"{base}{end}": kind for kind, bases in _VERBS.items() for base in bases.split() for end in ("", "s", "es")}
_KIND |= {f"{base.removesuffix('e')}ing": kind for kind, bases in _VERBS.items() for base in bases.split()}
_WAY = {word: way for way, words in _WAYS.items() for word in words.split()}
_STRIKES = {"hits", "hit", "crashes", "crash", "bumps", "bump", "collides", "collide", "knocks", "knock", "strikes"}
_STRIKES |= {"strike"}
_PLACES = {"past", "by", "passing", "beside", "next", "near", "with", "against"}
_ARTICLES = {"a", "an", "the", "of"}
_FUNCTION = "and while that is are it behind between screen wall camera"
_STRUCTURE = {*_KIND, *_WAY, *_STRIKES, *_PLACES, *_FUNCTION.split()}


class _Reader:
    """Walks over the words once: things as they come, and to whom each verb, way and speed belongs."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.things: list[Said] = []
        self.verbs: list[list[str]] = []  # of each thing
        self.speeds: list[str] = []
        self.doing: list[int] = []  # things that the next verb belongs to
        self.waiting: list[str] = []  # verbs that came before their thing
        self.slow = ""  # a speed that did
        self.event, self.arrangement = "", ""
        self.loose: list[str] = []

    def read(self) -> None:
        at, last, placed = 0, "", False
        relation: tuple[str, int] | None = None
        while at < len(self.words):
            word = self.words[at]
            noun, used = self._noun(at)
            if noun is not None:
                number = self._add(noun)
                joined = last == "and-thing" and not placed
                # After "past" or "hits" a thing is where something happens; it acts only if a verb of its own follows.
                self.doing = [*self.doing, number] if joined else [number]
                if self.waiting and not placed:
                    self.verbs[number] += self.waiting
                    self.speeds[number] = self.slow
                    self.waiting, self.slow = [], ""
                if relation is not None:
                    relation = self._relate(relation, number, joined or last == "and-thing")
                at, last = at + used, "thing"
                continue
            if word == "and" and last == "thing":
                last = "and-thing"
                at += 1
                continue
            if word in (",", "while", "and") and self.words[at + 1 : at + 3] == ["to", "the"]:
                self.doing = []  # "to the left goes a ball": what acts is still to come
            if word in _PLACES or word in ("while", ","):
                placed = word in _PLACES and word != "with"
            elif word in _KIND or word in _WAY:
                self._verb(word, at)
                placed = False
            elif word in _STRIKES:
                self._strike(at)
            elif word in ("<slow>", "<fast>"):
                self._pace(word.strip("<>"))
            elif word in ("<left-of>", "<right-of>", "between") and self.things:
                relation = (word.strip("<>"), len(self.things) - 1)
            elif word == "behind" and {"screen", "wall"} & set(self.words[at : at + 4]):
                self.event = "hide"
            elif word in captions.COLOUR_WORDS or word.isdecimal():
                self.loose.append(word)
            last = "word"
            at += 1

    def _noun(self, at: int) -> tuple[Said | None, int]:
        """A thing that begins at a word, with how many words it takes: [number] [size] [colour] [kind of] shape."""
        said: dict[str, str | int] = {}
        for used, word in enumerate(self.words[at : at + 6]):
            if word in _SHAPES:
                shape, many = _SHAPES[word]
                count = int(said.get("count", 2 if many else 1))
                if self.words[at + used + 1 : at + used + 3] == ["that", "is"] and at + used + 3 < len(self.words):
                    said["colour"], used = self.words[at + used + 3], used + 3
                return Said(shape, str(said.get("colour", "")), str(said.get("size", "")), count=count), used + 1
            if word in captions.COLOUR_WORDS:
                said["colour"] = word
            elif word in captions.SIZE_WORDS:
                said["size"] = word
            elif word.isdecimal() and len(word) < 3 and int(word):
                said["count"] = int(word)
            elif word not in _ARTICLES and (not said or not word.isalpha() or word in _STRUCTURE):
                break  # of other words ("a mauve soup tin") what follows may still be a noun
        return None, 0

    def _add(self, noun: Said) -> int:
        """The number of a thing; one that is named again ("the ball") stays itself."""
        for number, thing in enumerate(self.things):
            new = [n for n in ("colour", "size") if getattr(noun, n) and getattr(noun, n) != getattr(thing, n)]
            if thing.shape == noun.shape and not new and noun.count == thing.count:
                return number
        self.things.append(noun)
        self.verbs.append([])
        self.speeds.append("")
        return len(self.things) - 1

    def _verb(self, word: str, at: int) -> None:
        kind = _KIND.get(word) or _WAY[word]
        if word in _WAY and self.words[at + 1 : at + 2] == ["side"]:
            kind = _WAY[word]
        if kind != "still" and "not" in self.words[max(0, at - 2) : at]:
            kind = "still"
        if self.doing:
            for number in self.doing:
                self.verbs[number].append(kind)
        elif kind != "still":
            self.waiting.append(kind)

    def _pace(self, speed: str) -> None:
        for number in self.doing:
            self.speeds[number] = speed
        if not self.doing:
            self.slow = speed

    def _strike(self, at: int) -> None:
        """A hits B; B is hit by A from the left. Hitting the ground is falling."""
        if not self.things or {"ground", "floor"} & set(self.words[at + 1 : at + 4]):
            return
        self.event = "collide"
        if self.words[at + 1 : at + 2] == ["by"]:
            self.struck = len(self.things) - 1

    struck = -1

    def _relate(self, relation: tuple[str, int], number: int, joined: bool) -> tuple[str, int] | None:
        kind, first = relation
        names = [f"{self.things[i].colour} {self.things[i].shape}" for i in (first, number)]
        if kind != "between":
            self.arrangement = " | ".join(names if kind == "left-of" else names[::-1])
            return None
        if not joined:
            return relation
        ends = sorted(f"{self.things[i].colour} {self.things[i].shape}" for i in (number - 1, number))
        self.arrangement = " | ".join([*ends, names[0]])
        return None

    def facts(self, room: dict[str, str]) -> Facts:
        things = [
            dataclasses.replace(thing, motion=_motion(verbs), speed=speed)
            for thing, verbs, speed in zip(self.things, self.verbs, self.speeds, strict=True)
        ]
        if self.event == "collide" and len(things) > 1:
            things = self._collision(things)
        if self.event == "hide" and things:
            things[0] = dataclasses.replace(things[0], speed="")
        if self.arrangement:
            things = [dataclasses.replace(thing, motion="") for thing in things]
        elif len(things) > 1:  # who rests beside what acts is not always said
            things = [dataclasses.replace(t, motion="" if t.motion == "still" else t.motion) for t in things]
        read = Facts(tuple(things), self.event, arrangement=self.arrangement, loose=tuple(sorted(self.loose)))
        return dataclasses.replace(read, **room)  # type: ignore[arg-type]

    def _collision(self, things: list[Said]) -> list[Said]:
        if self.struck >= 0:
            struck, *others = things[self.struck], *(t for i, t in enumerate(things) if i != self.struck)
            way = (
                "right" if "<from-left>" in self.words else "left" if "<from-right>" in self.words else others[0].motion
            )
            things = [dataclasses.replace(others[0], motion=way), struck, *others[1:]]
        first, second, *rest = things
        return [dataclasses.replace(first, speed=""), dataclasses.replace(second, motion="", speed=""), *rest]


def _motion(kinds: list[str]) -> str:
    """The motion that verbs and ways amount to; "" where they name none."""
    for kind in ("bounce", "jump", "spin"):
        if kind in kinds:
            return kind
    if "rise" in kinds or ("up" in kinds and "travel" in kinds):
        return "rise"
    if "fall" in kinds or ("down" in kinds and "travel" in kinds):
        return "fall"
    for kind in TRAVELS:  # "toward the left" is left
        if kind in kinds:
            return kind
    return "still" if "still" in kinds else ""
