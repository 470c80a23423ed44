"""Turns what is asked for into an order: one of `generate`'s verbs with all that it needs, checked before it is
accepted. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldline.checkpoints import layout
from worldline.errors import UserError
from worldline.generate.board import Board, Card
from worldline.generate.request import (
    Request,
    check_pictures,
    check_prompt,
    how_of,
    known_defaults,
    read_fps,
    read_size,
    request_of,
)
from worldline.serve.refusals import bad
from worldline.serve.schemas import Create, Drawn, Edit
from worldline.serve.settings import Limits

ALIASES = ("sora-2",)  # code that was written for OpenAI's models asks for them by names that begin so
LOOP = Fraction(1, 2)  # seconds in which a loop closes
TRANSITION = 0.5  # seconds of a loop or blend unless given
JOIN = 0.5  # seconds around a cut that are made anew unless given
ASPECTS = ("1:1", "5:4", "4:5", "3:2", "2:3", "16:9", "9:16")
EXAMPLES = (  # for a model that knows all of their words
    "a red ball rolls to the right",
    "a green cone falls to the floor beside a purple cylinder",
    "a small yellow cube jumps",
    "a large blue ball bounces on the floor",
    "a pink cylinder spins in place while the camera zooms in",
    "an orange cube hits a cyan ball",
    "two purple cones, the camera orbits to the left",
    "a small red cube rises into the air, on a checkered white floor under a dark sky",
)
NO_PICTURE = np.zeros((1, 1, 3), np.uint8)  # stands for one that only the engine reads


@dataclass(frozen=True)
class Facts:
    """The measures of a clip."""

    width: int
    height: int
    frames: int
    fps: Fraction

    @staticmethod
    def of(held: Mapping[str, Any]) -> Facts:
        return Facts(held["width"], held["height"], held["frames"], Fraction(held["fps"]))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fps": str(self.fps)}

    @property
    def seconds(self) -> str:
        """From the first frame to the last, as `seconds` of a request is meant."""
        return f"{float((self.frames - 1) / self.fps):g}"


@dataclass(frozen=True)
class Order:
    """One call of a verb. `settings` are those of `Pipeline.request`, `about` those of the verb; `facts` are the
    measures of what comes out. `inputs`: names of the files that it needs. `kin`: orders of one kin differ in nothing
    but prompt and seed."""

    verb: str
    prompt: str
    settings: dict[str, Any]
    facts: Facts
    about: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    kin: str | None = None

    @property
    def passes(self) -> int:
        """How often it runs the sampler from its first step to its last, at least."""
        about = self.about
        if self.verb == "recut":
            return max(1, len(about["keep"]) - 1)
        if self.verb == "extend":
            return (about["forward"] > 0) + (about["backward"] > 0)
        if self.verb == "storyboard":
            return sum(not number or card["cut"] or card["image"] for number, card in enumerate(about["cards"]))
        return 2 if "bridge" in about else 1

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {**asdict(self), "facts": self.facts.as_dict()}

    @staticmethod
    def read(held: Mapping[str, Any]) -> Order:
        return Order(**{**held, "facts": Facts.of(held["facts"]), "inputs": tuple(held["inputs"])})


class Model:
    """What has to be known of a model to take orders for it."""

    def __init__(self, path: str | Path | None, limits: Limits) -> None:
        """Raises UserError for what is no model folder; nothing is loaded."""
        self.folder, self.limits = layout.check(path), limits
        hub = path is not None and not Path(path).exists()
        self.name = Path(path or "").name if hub else self.folder.resolve().name
        self.values = layout.defaults(self.folder)
        self.grid, _, self.pictures = layout.traits(self.folder)
        self.defaults = Request("", **known_defaults(self.values), grid=self.grid)

    def shapes(self) -> dict[str, str]:
        """Proportions and the size of each: the shorter side is that of the model's own size, as far as its tokens go.
        Those that come out alike are named once."""
        short, side = min(self.defaults.width, self.defaults.height), self.grid.side
        sizes: dict[str, str] = {}
        for aspect in ASPECTS:
            wide, high = (int(number) for number in aspect.split(":"))
            width, height = (max(side, round(short * n / min(wide, high) / side) * side) for n in (wide, high))
            if width * height <= self.limits.pixels:
                sizes.setdefault(f"{width}x{height}", aspect)
        return {aspect: size for size, aspect in sizes.items()}

    def examples(self) -> list[str]:
        """Prompts in words of the model's own vocabulary, where it has one."""
        known = set(layout.config(self.folder, "text_encoder").get("words", ()))
        return [prompt for prompt in EXAMPLES if set(re.findall("[a-z]+", prompt)) <= known]

    def answers_to(self, name: str) -> bool:
        return name == self.name or name.startswith(ALIASES)

    def request(self, prompt: str, **given: Any) -> Request:
        """A valid request within the limits; raises UserError naming the nearest that is."""
        request = request_of(self.defaults, prompt, **given)
        area, most = request.width * request.height, self.limits.pixels
        if area > most:
            shrink = (most / area) ** 0.5
            side = self.grid.side
            nearest = "x".join(str(max(side, int(n * shrink) // side * side)) for n in (request.width, request.height))
            raise UserError(f"--size {request.width}x{request.height}: too large here; the nearest valid is {nearest}")
        if request.frames - 1 > self.limits.seconds * request.fps:
            length = float((request.frames - 1) / request.fps)
            raise UserError(f"--seconds {length:g}: too long here; the nearest valid value is {self.limits.seconds:g}")
        return request

    # ---- one function for each call of the API ---------------------------------------------------

    def create(self, asked: Create, pictures: set[str]) -> Order:
        """Of words, of pictures (those given of `input_reference` and `last_reference`), or of cards."""
        if asked.characters:
            raise bad(
                f"{self.name} cannot be shown characters; give the character's id as `video` of /videos/edits or "
                "/videos/extensions instead", "characters", "unsupported_parameter",
            )  # fmt: skip
        given = settings_of(asked)
        if asked.size is not None:
            given["width"], given["height"] = read_size(asked.size)
        given |= {"frames": asked.num_frames, "fps": None if asked.fps is None else read_fps(asked.fps)}
        given["seconds"] = None if asked.seconds is None else float(asked.seconds)
        if asked.storyboard is not None:
            return self._storyboard(asked, given, pictures)
        check_prompt(asked.prompt)
        check_pictures(self.pictures, len(pictures))
        if "last_reference" in pictures:
            return self._between(asked, given, pictures)
        request = self.request(asked.prompt, **given)
        if asked.loop:
            return self._looped(asked, request, pictures)
        whole = how_of("auto", self.grid.latent(request.padded).frames, self.values) == "whole"
        kin = kin_of(request) if whole and not pictures else None
        return _order("animate" if pictures else "generate", asked, request, kin=kin)

    def _between(self, asked: Create, given: dict[str, Any], pictures: set[str]) -> Order:
        if "input_reference" not in pictures or asked.loop:
            raise bad("last_reference goes with an input_reference, and not with loop", "last_reference")
        request = self.request(asked.prompt, **given)
        least = (1 if self.pictures else self.grid.temporal) + 2
        if request.frames < least:
            raise bad(f"num_frames {request.frames}: too few; the nearest valid value is {least}", "num_frames")
        return _order("interpolate", asked, request)

    def _looped(self, asked: Create, request: Request, pictures: set[str]) -> Order:
        """What closes the loop is part of the length that was asked for."""
        bridge = self.groups(LOOP * request.fps)
        least = bridge + self.grid.temporal + 1
        if request.frames < least:
            raise bad(f"loop: {request.frames} frames are too few; the nearest valid length is {least} frames", "loop")
        return _order("animate" if pictures else "generate", asked, request, {"bridge": bridge})

    def _storyboard(self, asked: Create, given: dict[str, Any], pictures: set[str]) -> Order:
        assert asked.storyboard is not None
        if asked.loop or asked.rewrite or pictures - {f"card-{i}" for i in range(len(asked.storyboard))}:
            raise bad("storyboard goes with neither loop, rewrite nor references", "storyboard")
        cards = []
        for number, card in enumerate(asked.storyboard):
            picture = NO_PICTURE if f"card-{number}" in pictures else None
            if picture is None and not card.text.strip():
                raise bad(f"storyboard: card {number + 1} needs a text or an image", "storyboard")
            cards.append(Card(card.at, card.text, picture, card.cut))
        if given["seconds"] is None and given["frames"] is None:
            given["seconds"] = cards[-1].at + 1
        request = self.request(asked.prompt, **given)
        seconds = float((request.frames - 1) / request.fps)
        try:
            Board(tuple(cards), seconds).starts(request)
        except UserError as error:
            raise bad(f"storyboard: {error}", "storyboard") from None
        held = [{"at": card.at, "text": card.text, "cut": card.cut, "image": card.image is not None} for card in cards]
        return _order("storyboard", asked, request, {"cards": held})

    def remix(self, asked: Drawn, clip: Facts, strength: float) -> Order:
        return _order("remix", asked, self._over(asked, clip), {"strength": strength})

    def extend(self, asked: Drawn, clip: Facts, forward: float, backward: float) -> Order:
        after, before = (round(seconds * clip.fps) for seconds in (forward, backward))
        if not after and not before:
            raise bad(f"seconds: nothing is added; the nearest valid value is {float(1 / clip.fps):.3g}", "seconds")
        request = self._over(asked, clip, frames=clip.frames + after + before)
        return _order("extend", asked, request, {"forward": forward, "backward": backward})

    def edit(self, asked: Edit, clip: Facts, second: Facts | None, pictures: set[str]) -> Order:
        """Whatever `Edit.edit` names; a parameter of another edit is refused."""
        taken = {
            "remix": {"strength"},
            "loop": {"seconds"},
            "blend": {"seconds", "second", "strength"},
            "recut": {"keep", "join"},
            "inpaint": {"mask"},
            "outpaint": {"size"},
        }
        others = set().union(*taken.values()) - taken[asked.edit]
        for name in sorted(others):
            if getattr(asked, name) is not None:
                raise bad(f"{name} says nothing to the edit {asked.edit}", name)
        seconds = TRANSITION if asked.seconds is None else float(asked.seconds)
        match asked.edit:
            case "remix":
                return self.remix(asked, clip, 0.7 if asked.strength is None else asked.strength)
            case "loop":
                if not 1 / clip.fps <= seconds <= 600:
                    raise bad(f"seconds: the nearest valid value is {float(1 / clip.fps):.3g}", "seconds")
                bridge = self.groups(seconds * clip.fps)
                return _order("loop", asked, self._over(asked, clip, frames=clip.frames + bridge), {"seconds": seconds})
            case "blend":
                return self._blend(asked, clip, second, seconds)
            case "recut":
                return self._recut(asked, clip)
            case "inpaint":
                if "mask" not in pictures:
                    raise bad("mask is missing: a picture of the clip's size, white where to paint", "mask")
                return _order("inpaint", asked, self._over(asked, clip))
            case "outpaint":
                return self._outpaint(asked, clip)

    def _blend(self, asked: Edit, clip: Facts, second: Facts | None, seconds: float) -> Order:
        if second is None:
            raise bad("second is missing: the clip that ends", "second")
        if (clip.width, clip.height) != (second.width, second.height):
            found, wanted = (f"{facts.width}x{facts.height}" for facts in (second, clip))
            raise bad(f"second: of {found}; the nearest valid size is {wanted}", "second")
        other = round((second.frames - 1) / second.fps * clip.fps) + 1  # it is read at the first one's rate
        count, shortest = self.groups(seconds * clip.fps), min(clip.frames, other)
        if count >= shortest:
            most = float((shortest - 1) / clip.fps)
            raise bad(f"seconds {seconds:g}: longer than a clip; the nearest valid value is {most:g}", "seconds")
        strength = 0.8 if asked.strength is None else asked.strength
        request = self._over(asked, clip, frames=clip.frames + other - count)
        return _order("blend", asked, request, {"seconds": seconds, "strength": strength})

    def _recut(self, asked: Edit, clip: Facts) -> Order:
        if not asked.keep:
            raise bad("keep is missing: stretches in seconds, as [[0, 1], [2.5, 4]]", "keep")
        join = JOIN if asked.join is None else asked.join
        lengths, last = [], float(clip.frames / clip.fps)
        for begin, end in asked.keep:
            first, stop = round(begin * clip.fps), round(end * clip.fps)
            if not 0 <= first < stop <= clip.frames:
                raise bad(f"keep: [{begin:g}, {end:g}] is no stretch of a video of {last:g} s", "keep")
            lengths.append(stop - first)
        half = self.groups(join * clip.fps) // 2 if join else 0
        if len(lengths) > 1 and min(lengths) <= 2 * half:
            most = float(max(0, min(lengths) - 1) // 2 / clip.fps)
            raise bad(f"join {join:g}: longer than a stretch; the nearest valid value is {most:g}", "join")
        request = self._over(asked, clip, frames=sum(lengths))
        return _order("recut", asked, request, {"keep": [list(stretch) for stretch in asked.keep], "join": join})

    def _outpaint(self, asked: Edit, clip: Facts) -> Order:
        if asked.size is None:
            raise bad("size is missing: WIDTHxHEIGHT of the result", "size")
        width, height = read_size(asked.size)
        if width < clip.width or height < clip.height:
            nearest = f"{max(width, clip.width)}x{max(height, clip.height)}"
            raise bad(f"size {asked.size}: smaller than the clip; the nearest valid size is {nearest}", "size")
        return _order("outpaint", asked, self._over(asked, clip, width=width, height=height))

    def _over(self, asked: Drawn, clip: Facts, **other: Any) -> Request:
        """The request for a video as long and large as a clip, but for what is `other`."""
        check_prompt(asked.prompt)
        measures = {"width": clip.width, "height": clip.height, "frames": clip.frames, "fps": clip.fps, **other}
        return self.request(asked.prompt, **settings_of(asked), **measures)

    def groups(self, frames: float | Fraction) -> int:
        """The least multiple of a latent frame's frames that holds so many, at least one of them."""
        return max(1, -(-round(frames) // self.grid.temporal)) * self.grid.temporal


def settings_of(asked: Drawn) -> dict[str, Any]:
    """What all calls share, by the names of `Pipeline.request`."""
    return {
        "seed": secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        "steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "negative_prompt": asked.negative_prompt,
    }


def kin_of(request: Request) -> str:
    """What requests must share to be packed into one sequence."""
    shared = {name: value for name, value in request.as_dict().items() if name not in ("prompt", "seed")}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:32]


def _order(verb: str, asked: Drawn, request: Request, about: dict[str, Any] | None = None, **more: Any) -> Order:
    # What was not asked for stays the model's own, which may have two of it.
    settings = {name: value for name, value in settings_of(asked).items() if value is not None}
    facts = Facts(request.width, request.height, request.frames, request.fps)
    return Order(
        verb, request.prompt, {**settings, **facts.as_dict(), "seed": request.seed}, facts, about or {}, **more
    )
