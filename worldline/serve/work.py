"""Does orders with a model: the same verbs that the command line calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from worldline.generate import edit
from worldline.generate.board import Board, Card
from worldline.generate.drawing import Progress
from worldline.generate.load import load
from worldline.generate.pipeline import Pipeline
from worldline.generate.result import Result
from worldline.generate.storyboard import storyboard
from worldline.media.provenance import Parent
from worldline.media.read import Video, read_image, read_video
from worldline.serve.files import LATENTS, Done, Made, write_files
from worldline.serve.orders import Order

# What an order's clips are to what is made of them; its pictures are shown to the model.
ROLES: dict[str, Any] = {"video.sent": "opened", "second.sent": "placed"}


class Painter:
    """Does orders with a model, which is loaded when the first one comes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    @cached_property
    def pipeline(self) -> Pipeline:
        pipeline = load(self.folder)
        pipeline.denoiser.glimpses = True
        return pipeline

    def do(self, order: Order, folder: Path, progress: Progress) -> Done:
        made = make(self.pipeline, order, folder, progress, self.max_bytes)
        parents = [Parent(folder / name, ROLES.get(name, "input")) for name in order.inputs]
        return write_files(made._replace(parents=parents), folder)

    def together(self, orders: Sequence[Order], folders: Sequence[Path], progress: Progress) -> Iterator[Done]:
        requests = [self.pipeline.request(order.prompt, **_settings(order)) for order in orders]
        for result, folder in zip(self.pipeline.together(requests, progress), folders, strict=True):
            yield write_files(_of(result), folder)

    def glimpse(self, index: int) -> np.ndarray | None:
        return self.pipeline.glimpse(index)


def make(pipeline: Pipeline, order: Order, folder: Path, progress: Progress, max_bytes: int) -> Made:
    """Calls the verb of an order, whose inputs lie in `folder`. Raises UserError as the verb.

    Latents of a video that is made of words and pictures are kept in LATENTS of it, and it goes on there.
    """
    settings, about = _settings(order), order.about
    if order.verb in ("generate", "animate"):
        return _generated(pipeline, order, folder, settings, progress)
    if order.verb == "interpolate":
        first, last = (read_image(folder / f"{name}.png") for name in ("input_reference", "last_reference"))
        return _of(edit.interpolate(pipeline, first, last, order.prompt, **settings, progress=progress))
    drawn = {name: value for name, value in settings.items() if name not in ("width", "height", "frames", "fps")}
    drawn["progress"] = progress
    if order.verb == "storyboard":
        return _of(storyboard(pipeline, _board(order, folder), **drawn))
    clip, prompt = read_video(folder / "video.sent", max_bytes=max_bytes), order.prompt
    match order.verb:
        case "remix":
            return _of(edit.remix(pipeline, clip, prompt, **about, **drawn))
        case "extend":
            return _of(edit.extend(pipeline, clip, prompt, **about, **drawn))
        case "loop":
            return _of(edit.loop(pipeline, clip, prompt, **about, **drawn))
        case "blend":
            second = read_video(folder / "second.sent", fps=clip.fps, max_bytes=max_bytes)
            return _of(edit.blend(pipeline, clip, second, prompt, **about, **drawn))
        case "recut":
            return _of(edit.recut(pipeline, clip, about["keep"], prompt, about["join"], **drawn))
        case "inpaint":
            mask = read_image(folder / "mask.png").mean(-1) > 127  # (H, W)
            return _of(edit.inpaint(pipeline, clip, mask, prompt, **drawn))
        case "outpaint":
            return _of(edit.outpaint(pipeline, clip, settings["width"], settings["height"], prompt, **drawn))
    raise ValueError(f"no verb {order.verb}")


def _generated(pipeline: Pipeline, order: Order, folder: Path, settings: dict[str, Any], progress: Progress) -> Made:
    image = read_image(folder / "input_reference.png") if order.verb == "animate" else None
    bridge = order.about.get("bridge", 0)
    settings["frames"] -= bridge
    request = pipeline.request(order.prompt, **settings)
    frames = pipeline.reel.stretch(request, image, progress=progress, store=folder / LATENTS)
    if not bridge:
        return Made(frames, request.fps, pipeline.record(request, image=image is not None))
    clip = Video(np.stack(list(frames)), request.fps)
    drawn = {name: value for name, value in settings.items() if name not in ("width", "height", "frames", "fps")}
    seconds = float(bridge / request.fps)
    return _of(edit.loop(pipeline, clip, order.prompt, seconds, **drawn, progress=progress))


def _settings(order: Order) -> dict[str, Any]:
    return {**order.settings, "fps": Fraction(order.settings["fps"])}


def _board(order: Order, folder: Path) -> Board:
    cards = [
        Card(card["at"], card["text"], read_image(folder / f"card-{i}.png") if card["image"] else None, card["cut"])
        for i, card in enumerate(order.about["cards"])
    ]
    facts = order.facts
    seconds = float((facts.frames - 1) / facts.fps)
    return Board(tuple(cards), seconds, (facts.width, facts.height), str(facts.fps))


def _of(result: Result) -> Made:
    return Made(result.frames, result.fps, dict(result.metadata))
