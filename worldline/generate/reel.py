"""Videos of any length on a timeline, painted in as many passes as it takes and given away as they are finished."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from worldline.dit.conditions import Conditions, driven, none
from worldline.errors import UserError
from worldline.generate.canvas import Canvas, fitted, joined, timeline
from worldline.generate.codec import Codec
from worldline.generate.denoiser import Denoiser
from worldline.generate.drawing import Drawing, Progress
from worldline.generate.long import Step, paint, plan, seed_of
from worldline.generate.request import Request, how_of
from worldline.generate.room import Room
from worldline.media.write import write_bytes


class Reel:
    """Paints a timeline, at most `window` latent frames at once where a plan divides it."""

    def __init__(self, codec: Codec, denoiser: Denoiser, room: Room, window: int, defaults: Mapping[str, Any]) -> None:
        """`defaults`: of the model, which say when "auto" divides."""
        self.codec, self.denoiser, self.room, self.window, self.defaults = codec, denoiser, room, window, defaults
        self.config, self.grid = denoiser.experts.config, codec.grid

    def plan_for(self, frames: int, how: str = "auto") -> str:
        """The plan of `generate.long` for so many latent frames: "auto" cuts what the model can only make in pieces.

        Raises UserError for pieces where the model reads clips as wholes.
        """
        how = how_of(how, frames, self.defaults)
        if how != "whole" and self.config.holding == "clip":
            raise UserError(
                f"--long {how}: the model reads what is known as one clip; the nearest valid value is whole"
            )
        return how

    def paint(
        self,
        canvas: Canvas,
        request: Request,
        how: str = "auto",
        start: Tensor | None = None,
        strength: float = 1.0,
        keep: bool = True,
        progress: Progress | None = None,
        prompts: Sequence[tuple[int, str]] = (),
    ) -> Iterator[np.ndarray]:
        """The canvas painted, frame by frame, uint8 (H, W, 3).

        Args:
            request: prompt, seed and settings; size and length are the canvas's.
            how: a plan of `generate.long`, or "auto".
            start, strength: whitened latents of the padded canvas to begin from, and how much noise they get.
            keep: put known pixels back bit for bit (see `Canvas.restored`); else they are what the autoencoder makes
                of them.
            prompts: (frame, prompt) in order of time: from that frame on this prompt holds instead of the request's.
        """
        padded, size = canvas.padded(self.grid), canvas.shape
        whole = replace(request, width=size.width, height=size.height, frames=size.frames, num_videos=1)
        self.room.prepare(whole, how, reads=True)
        drawing = replace(Drawing.of(request), shape=padded.shape, strength=strength)
        # A latent frame that a change of prompts divides still belongs to the prompt before.
        group = self.grid.temporal
        told = [((frame + group // 2) // group + 1 if frame > 0 else 0, prompt) for frame, prompt in prompts]
        painted = self.stream(self.codec.condition(canvas), request, drawing, how, start, progress, prompts=told)
        frames = padded.restored(painted) if keep else (frame for chunk in painted for frame in chunk)
        for frame in itertools.islice(frames, size.frames):
            yield frame[: size.height, : size.width]

    def stretch(
        self,
        request: Request,
        image: np.ndarray | None = None,
        how: str = "auto",
        progress: Progress | None = None,
        store: Path | None = None,
        inputs: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """`Pipeline.generate` for one long video: frames uint8 (H, W, 3) as they are finished; `store` as in `stream`.

        `inputs`: float32 (F, K), what drives the world from each frame to the next, as in `conditions.driven`.
        """
        self.room.prepare(request, how, reads=image is not None, streamed=True)
        drawing = Drawing.of(request)
        latent = self.grid.latent(drawing.shape)
        self.plan_for(latent.frames, how)
        conditions = none((self.config.in_channels, latent.frames, latent.height, latent.width))
        if inputs is not None:
            actions = driven(torch.from_numpy(inputs), range(latent.frames), self.grid.temporal)
            conditions = replace(conditions, actions=actions)
        picture = None if image is None else fitted(image, request.height, request.width)
        if picture is not None:
            known = self.codec.condition(timeline([picture[None]]))
            conditions.known[:, :1], conditions.mask[:, :1] = known.known, known.mask
        painted = self.stream(conditions, request, drawing, how, None, progress, store)
        shown = (chunk[:, : request.height, : request.width] for chunk in painted)
        yield from itertools.islice(joined(shown, {0: picture}.get), request.frames)

    def stream(
        self,
        conditions: Conditions,
        request: Request,
        drawing: Drawing,
        how: str = "auto",
        start: Tensor | None = None,
        progress: Progress | None = None,
        store: Path | None = None,
        prompts: Sequence[tuple[int, str]] = (),
    ) -> Iterator[np.ndarray]:
        """Pixels uint8 (t, H, W, 3) of a timeline of any length, in memory that does not grow with it but for latents.

        `store`: a folder that keeps the latents of every finished step; those that it holds are not made again.
        `prompts`: (latent frame, prompt), as in `paint`, the first from the beginning: each stretch is painted in view
        of all before it.
        """
        clip = self.config.holding == "clip"
        # A model that reads a clip makes all of it anew: what is known stands beside.
        known = (conditions.mask.flatten(2).amin((0, 2)).bool() & (not clip)).tolist()
        told = [prompt for _, prompt in prompts] or [request.prompt]
        cuts = [0, *(first for first, _ in prompts[1:]), len(known)]
        steps: list[Step] = []
        words: list[str] = []
        for prompt, (first, stop) in zip(told, itertools.pairwise(cuts), strict=True):
            steps += plan([True] * first + known[first:stop], self.window, self.plan_for(stop, how))
            words += [prompt] * (len(steps) - len(words))
        if clip and len(steps) > 1:
            raise UserError("PROMPT: the model reads what is known as one clip; give one prompt for all of it")

        def sample(number: int, step: Step, part: Conditions) -> Tensor:
            def report(done: int) -> None:
                if progress:
                    progress(number * drawing.steps + done, len(steps) * drawing.steps)

            begin = None if start is None else start[:, step.times]
            seeds = [seed_of(request.seed, number)]
            return self.denoiser.sample([words[number]], seeds, drawing, part, report, step.times, begin)[0]

        def recalled(number: int, step: Step, part: Conditions) -> Tensor:
            file = (store or Path()) / f"step-{number:05d}.safetensors"
            if not file.exists():
                write_bytes(file, save({"latents": sample(number, step, part)}))
            return load_file(file)["latents"]

        pieces = paint(conditions, steps, sample if store is None else recalled)
        yield from self.codec.decode(piece for _, piece in pieces)
