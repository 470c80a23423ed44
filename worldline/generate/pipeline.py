"""The whole chain: prompts -> text states -> denoised latents -> pixels, for many videos packed in one sequence."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from worldline.checkpoints import layout
from worldline.checkpoints.folder import LayoutName, Parts, convert, load_parts, model_hash, save_pretrained
from worldline.checkpoints.keymap import Piece
from worldline.checkpoints.outline import Outline
from worldline.diffusion.guidance import cfg, cfg_text_image, image_ramp, oscillating, scale_at
from worldline.diffusion.path import RectifiedFlow, add_noise
from worldline.diffusion.samplers import by_name
from worldline.diffusion.timesteps import at_timesteps
from worldline.dit.conditions import Conditions, driven, frames_to_tokens, none, place_known
from worldline.dit.mmdit import MMDiT
from worldline.dit.model import DiT
from worldline.dit.patchify import Packed, Patch, grid, pack, patchify, unpack
from worldline.dit.reuse import Reuse
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.generate.canvas import Canvas, fitted, joined, runs, timeline
from worldline.generate.long import Step, paint, plan, seed_of
from worldline.generate.plan import MAX_PACKED, Setting, fitting_cut, setting, spare, standard_cut
from worldline.generate.request import (
    MAX_VIDEOS,
    Request,
    check_pictures,
    check_prompt,
    copies_of,
    how_of,
    known_defaults,
    request_of,
    suffixed,
    window_of,
)
from worldline.generate.result import Result
from worldline.media.provenance import provenance
from worldline.media.write import write_bytes
from worldline.nn.hollow import is_hollow
from worldline.nn.memory import keep_freed_memory, return_freed_memory
from worldline.shapes import Grid, VideoShape
from worldline.text import CachedText, TextStates
from worldline.vae.codec import Cut
from worldline.vae.streaming import decode_stream, encode_stream

Progress = Callable[[int, int], None]
FLOW = RectifiedFlow()


@dataclass(frozen=True)
class Drawing:
    """What sampling needs to know beside the prompts: size (divisible, see VideoShape.snapped), steps, guidance, and
    what ends each prompt.

    `strength`: 1 begins in noise; below, in what is to be changed with so much noise (SDEdit, Meng et al. 2021).
    """

    shape: VideoShape
    steps: int = 20
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    guidance_scale_image: float | None = None
    negative_prompt: str = ""
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_oscillation: bool = False
    shift: float | None = None
    prompt_suffix: str = ""
    sampler: str = "euler"
    reuse: float = 0.0
    strength: float = 1.0

    def copies(self, known: bool) -> int:
        """How often the model is asked of each video at once, see `request.copies_of`; the scale of what is known tells
        nothing new where nothing is `known`."""
        return copies_of(self.guidance_scale, self.guidance_scale_2, self.guidance_scale_image if known else None)

    @staticmethod
    def of(request: Request) -> Drawing:
        """The part of a request that sampling needs."""
        names = {field.name for field in fields(Drawing)} & {field.name for field in fields(Request)}
        shared = {name: getattr(request, name) for name in names}
        shared["prompt_suffix"] = request.prompt_suffix.replace("{fps}", f"{float(request.fps):g}")
        return Drawing(request.padded, **shared)


class Pipeline:
    """A loaded model. Device and dtype are chosen here, once; every video is a function of (prompt, seed, settings).

    `max_memory`: bytes that the process, or the device, may hold at most; None means what is free when a video is made.
    """

    def __init__(
        self,
        parts: Parts,
        identity: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        source: Path | None = None,
        max_memory: float | None = None,
    ) -> None:
        """`source`: the folder that the parts were read from for this pipeline alone; they then are not copied."""
        self.parts = parts
        self.source, self.max_memory = source, max_memory
        self.model_hash = identity
        self.device = chosen_device(device)
        self.dtype = dtype or half_of(parts.dit) or fast_dtype(self.device)
        # Copies unless `source`: the parts may belong to a training run, which needs them as they are.
        own = parts if source else _copied(parts)
        self.vae = own.vae.to(self.device, self.dtype)
        self.dit, self.low = own.dit, own.low
        for dit in (self.dit, self.low):
            if dit is not None and not is_hollow(dit):
                dit.to(self.device, self.dtype)
        self._experts: dict[Any, Piece[Any]] = dict(zip((self.dit, self.low), parts.experts or (), strict=False))
        self.text = CachedText(parts.text)
        self.grid = Grid(self.vae.config.temporal, self.vae.config.spatial, self.dit.config.patch)
        self.defaults = Request("", **known_defaults(parts.defaults), grid=self.grid)
        self.window = window_of(parts.defaults, self.grid)
        self.timings: dict[str, float] = {}
        self.reuses: list[Reuse] = []  # since `prepare`
        self.glimpses = False  # whether `glimpse` is asked for
        self._expected: Callable[[], list[Tensor]] | None = None
        self._before = 0  # videos that were drawn in sequences before the one in work
        self._cuts: dict[tuple[int, int], Cut] = {}
        self._both = False  # whether there is room for two experts

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> Pipeline:
        """Compiles the transformers' blocks by `torch.compile` when they first run; those of a kind share programs.

        It takes up to a minute for every new shape, and gives the same numbers but for rounding. Raises UserError where
        the device needs a compiler of C++ that is not there.
        """
        if backend == "inductor":
            check_compiler(self.device)
        for dit in (self.dit, self.low):
            for block in [] if dit is None else dit.stack():
                block.compile(backend=backend)
        return self

    def save_pretrained(
        self,
        folder: str | Path,
        layout: LayoutName | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the model as it was loaded, not as `self.dtype` rounds it; arguments as `folder.save_pretrained`."""
        if self.source:
            return convert(self.source, folder, layout, dtype, overwrite)
        return save_pretrained(self.parts, folder, dtype, overwrite, layout)

    # ---- for people ----------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        *,
        width: int | None = None,
        height: int | None = None,
        seconds: float | None = None,
        frames: int | None = None,
        fps: float | Fraction | str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        guidance_scale_image: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_oscillation: bool | None = None,
        shift: float | None = None,
        sampler: str | None = None,
        reuse: float | None = None,
        negative_prompt: str | None = None,
        prompt_suffix: str | None = None,
        seed: int = 0,
        num_videos: int = 1,
        image: np.ndarray | None = None,
        long: str = "auto",
        progress: Progress | None = None,
    ) -> Result:
        """Make `num_videos` videos of a prompt; what is not given comes from the model's own defaults.

        `image`: uint8 (H, W, 3), kept as the first frame. `long`: see `paint`. `frames=1` makes a picture.
        `guidance_scale_2`: of the low-noise expert, for a model that has one; `guidance_scale_image`: of what is known,
        for a model that is guided by it. `guidance_oscillation`, `shift`, `prompt_suffix`, `reuse`: see `Request`.
        `progress(done, total)` is called after every step. Raises UserError for any value that cannot be.
        """
        given: dict[str, Any] = {"width": width, "height": height, "steps": steps, "sampler": sampler, "fps": fps}
        given |= {"guidance_scale": guidance_scale, "guidance_scale_2": guidance_scale_2}
        given |= {"guidance_scale_image": guidance_scale_image, "guidance_rescale": guidance_rescale}
        given |= {"guidance_oscillation": guidance_oscillation, "prompt_suffix": prompt_suffix}
        given |= {"guidance_interval": guidance_interval, "negative_prompt": negative_prompt, "seed": seed}
        given |= {"shift": shift, "reuse": reuse}
        check_prompt(prompt)
        request = self.request(prompt, seconds=seconds, frames=frames, num_videos=num_videos, **given)
        return self.run(request, image, progress, long)

    def request(self, prompt: str, **given: Any) -> Request:
        """A valid request with the model's own defaults for what is not given, see `request.request_of`."""
        return request_of(self.defaults, prompt, **given)

    def plan_for(self, frames: int, how: str = "auto") -> str:
        """The plan of `generate.long` for so many latent frames: "auto" cuts what the model can only make in pieces.

        Raises UserError for pieces where the model reads clips as wholes.
        """
        how = how_of(how, frames, self.parts.defaults)
        if how != "whole" and self.dit.config.holding == "clip":
            raise UserError(
                f"--long {how}: the model reads what is known as one clip; the nearest valid value is whole"
            )
        return how

    @cached_property
    def outline(self) -> Outline:
        """The model without its weights, from which plans are made."""
        return Outline.of_parts(self.parts)

    def prepare(self, request: Request, how: str = "auto", reads: bool = False, streamed: bool = False) -> None:
        """Settles how the frames of a request are cut from now on, see `generate.plan`.

        `reads`: known pixels are encoded; `streamed`: frames are given away as they are finished. Raises UserError with
        the nearest size or length that fits where it does not fit into memory.
        """
        self.reuses = []
        about = {"ready": True, "reads": reads, "streamed": streamed, "how": how}
        where = setting(self.device, self.dtype, self.parts.defaults, self.max_memory, **about)
        cells = request.grid.latent(request.padded)
        self._cuts[cells.height, cells.width] = fitting_cut(self.outline, request, where)
        if self._experts:
            assert self.low is not None
            width = torch.empty((), dtype=self.dtype).element_size()
            asleep = [dit for dit in (self.dit, self.low) if is_hollow(dit)]
            needed = sum(width * value.numel() for dit in asleep for value in dit.parameters())
            self._both = spare(self.outline, request, where) >= needed
            if not self._both and not asleep:
                self._sleep(self.low)

    def run(
        self,
        request: Request,
        image: np.ndarray | None = None,
        progress: Progress | None = None,
        how: str = "auto",
    ) -> Result:
        """Make the videos of a valid request; `image` uint8 (H, W, 3) as in `generate`, `how` as in `paint`."""
        check_pictures(self.pictures, 0 if image is None else 1)
        seeds = [request.seed + index for index in range(request.num_videos)]
        canvas = None
        if image is not None:
            picture = fitted(image, request.height, request.width)[None]
            canvas = timeline([picture, request.frames - 1] if request.frames > 1 else [picture])
        self.prepare(request, how, reads=image is not None)
        self.timings = {}
        if self.plan_for(self.grid.latent(request.padded).frames, how) == "whole":
            videos = self.draw([request.prompt] * len(seeds), seeds, Drawing.of(request), canvas, progress)
            videos = [video[: request.frames, : request.height, : request.width] for video in videos]
        else:
            asked = [replace(request, seed=seed) for seed in seeds]
            videos = [np.stack(list(self.stretch(one, image, how, progress))) for one in asked]
        about: dict[str, Any] = {"image": False} if image is None else {"image": True, "known": self.holding}
        return Result(videos, request.fps, self.record(request, **about), dict(self.timings))

    def together(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Result]:
        """The videos of requests that differ in prompt and seed alone, packed into one sequence: of each the same as
        `run` makes of it alone, but for rounding."""
        first = requests[0]
        self.prepare(first)
        self.timings = {}
        prompts, seeds = [request.prompt for request in requests], [request.seed for request in requests]
        videos = self.draw(prompts, seeds, Drawing.of(first), progress=progress)
        size = slice(first.frames), slice(first.height), slice(first.width)
        return [
            Result([video[size]], request.fps, self.record(request, image=False), dict(self.timings))
            for video, request in zip(videos, requests, strict=True)
        ]

    @torch.inference_mode()
    def glimpse(self, index: int = 0) -> np.ndarray | None:
        """What the step in work expects of the `index`th of the videos that are asked for: a frame uint8 (H, W, 3) of
        its middle, None where it is not in work. For those who set `glimpses`."""
        expected = [] if self._expected is None else self._expected()
        if not 0 <= index - self._before < len(expected):
            return None
        latents = expected[index - self._before]
        middle = latents.shape[1] // 2
        return next(self.decode([latents[:, middle : middle + 1]]))[0]

    def record(self, request: Request, **more: Any) -> dict[str, Any]:
        """What the files of a request say of their making."""
        settings = {key: value for key, value in request.as_dict().items() if key not in ("prompt", "seed")}
        cells = request.grid.latent(request.padded)
        cut = self._cut(cells.height, cells.width)
        settings |= {"decoded": str(cut)} if cut.blended else {}
        settings |= {"reused": reused(self.reuses)} if request.reuse else {}
        return provenance(request.prompt, request.seed, self.model_hash, model=self.name, **settings, **more)

    @property
    def name(self) -> str:
        """What the model is called; "" for parts that no folder holds."""
        return "" if self.source is None else layout.name_of(self.source)

    @property
    def holding(self) -> str:
        """How what is known is held: "masks", as the model was trained to, or "replacement" for one that was not."""
        return "replacement" if self.dit.config.holding == "noisy" else "masks"

    @property
    def pictures(self) -> int:
        """How many it cannot do without: 1, the first; 2, the first and the last."""
        if self.dit.config.holding != "clip":
            return 0
        return 2 if self.dit.config.image_positions else 1

    @property
    def driven(self) -> bool:
        """Whether it was taught worlds that are driven by inputs."""
        return self.dit.config.actions > 0

    def answer(self, prompts: Sequence[str], seeds: Sequence[int], **given: Any) -> list[np.ndarray]:
        """One video uint8 (T, H, W, 3) per (prompt, seed) with the model's defaults but for what is `given`, as for
        `request`: what an evaluation asks for. Raises UserError where they do not fit into memory."""
        asked = self.request("", num_videos=min(max(1, len(prompts)), MAX_VIDEOS), **given)
        self.prepare(asked, "whole")
        videos = self.draw(prompts, seeds, Drawing.of(asked))
        return [video[: asked.frames, : asked.height, : asked.width] for video in videos]

    @torch.inference_mode()
    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) through the autoencoder and back: the ceiling of what the model can draw."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        mean = self.vae.encode(pixels.to(self.device, self.dtype)).mean  # (1, C, T', H', W')
        size = (frames.shape[0], frames.shape[1], frames.shape[2])
        return np.concatenate([to_uint8(chunk[0]) for chunk in decode_stream(self.vae, mean, size=size)])

    def hints(self, request: Request) -> list[str]:
        """One line for each way in which the model will not understand the prompt: unknown words, too many words."""
        unknown = getattr(self.parts.text, "unknown", None)
        words = unknown(request.prompt) if unknown else []
        lines = []
        if words:
            listed = ", ".join(map(repr, words[:8])) + (" ..." if len(words) > 8 else "")
            lines.append(
                f"the model was not taught {listed} and may misread it; `worldline worlds render` shows its words"
            )
        with torch.inference_mode():
            told = suffixed(request.prompt, Drawing.of(request).prompt_suffix)
            truncated = self.text.encode([told]).truncated
            if truncated is not None and bool(truncated[0]):
                lines.append("the prompt is longer than the model reads; its end is ignored")
        return lines

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
        self.prepare(whole, how, reads=True)
        drawing = replace(Drawing.of(request), shape=padded.shape, strength=strength)
        # A latent frame that a change of prompts divides still belongs to the prompt before.
        group = self.grid.temporal
        told = [((frame + group // 2) // group + 1 if frame > 0 else 0, prompt) for frame, prompt in prompts]
        painted = self.stream(self.condition(canvas), request, drawing, how, start, progress, prompts=told)
        frames = padded.restored(painted) if keep else (frame for chunk in painted for frame in chunk)
        for frame in itertools.islice(frames, size.frames):
            yield frame[: size.height, : size.width]

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
        clip = self.dit.config.holding == "clip"
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
            return self.sample([words[number]], seeds, drawing, part, report, step.times, begin)[0]

        def recalled(number: int, step: Step, part: Conditions) -> Tensor:
            file = (store or Path()) / f"step-{number:05d}.safetensors"
            if not file.exists():
                write_bytes(file, save({"latents": sample(number, step, part)}))
            return load_file(file)["latents"]

        pieces = paint(conditions, steps, sample if store is None else recalled)
        yield from self.decode(piece for _, piece in pieces)

    def stretch(
        self,
        request: Request,
        image: np.ndarray | None = None,
        how: str = "auto",
        progress: Progress | None = None,
        store: Path | None = None,
        inputs: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """`generate` for one long video: frames uint8 (H, W, 3) as they are finished; `store` as in `stream`.

        `inputs`: float32 (F, K), what drives the world from each frame to the next, as in `conditions.driven`.
        """
        self.prepare(request, how, reads=image is not None, streamed=True)
        drawing = Drawing.of(request)
        latent = self.grid.latent(drawing.shape)
        self.plan_for(latent.frames, how)
        conditions = none((self.dit.config.in_channels, latent.frames, latent.height, latent.width))
        if inputs is not None:
            actions = driven(torch.from_numpy(inputs), range(latent.frames), self.grid.temporal)
            conditions = replace(conditions, actions=actions)
        picture = None if image is None else fitted(image, request.height, request.width)
        if picture is not None:
            known = self.condition(timeline([picture[None]]))
            conditions.known[:, :1], conditions.mask[:, :1] = known.known, known.mask
        painted = self.stream(conditions, request, drawing, how, None, progress, store)
        shown = (chunk[:, : request.height, : request.width] for chunk in painted)
        yield from itertools.islice(joined(shown, {0: picture}.get), request.frames)

    # ---- the chain -----------------------------------------------------------------------------

    @torch.inference_mode()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        drawing: Drawing,
        canvas: Canvas | None = None,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """One video uint8 (T, H, W, 3) per (prompt, seed), all of the divisible shape `drawing.shape`.

        What is known of `canvas`, which that shape pads, stands in every video.
        """
        condition = None if canvas is None else self.condition(canvas)
        each = self.grid.tokens(drawing.shape).count * drawing.copies(known=condition is not None)
        size = max(1, MAX_PACKED // each)
        groups = [slice(start, start + size) for start in range(0, len(prompts), size)]
        videos: list[np.ndarray] = []
        try:
            for index, group in enumerate(groups):
                total = drawing.steps * len(groups)
                done = drawing.steps * index
                self._before = group.start
                step = (lambda i, done=done, total=total: progress(done + i, total)) if progress else None
                latents = self.sample(prompts[group], seeds[group], drawing, condition, step)
                videos += [np.concatenate(list(self.decode([latent]))) for latent in latents]
        finally:
            self._before = 0
        if canvas is None:
            return videos
        return [np.stack(list(canvas.padded(self.grid).restored([video]))) for video in videos]

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        drawing: Drawing,
        condition: Conditions | None = None,
        step: Callable[[int], None] | None = None,
        times: Sequence[int] | None = None,
        start: Tensor | None = None,
    ) -> list[Tensor]:
        """Whitened latents (C, T', H', W') float32, one per (prompt, seed), denoised together in one packed sequence.

        Noise is drawn on the CPU from each video's own seed, so that a video does not depend on its neighbours or on
        the device.

        Args:
            condition: what is known of the latents, by default nothing.
            times: numbers of the latent frames, 0 to T' - 1 unless given; then `drawing.shape` holds so many.
            start: whitened latents (C, T', H', W') to begin from where `drawing.strength` is below 1.
        """
        config, latent = self.dit.config, self.grid.latent(drawing.shape)
        check_pictures(self.pictures, 0 if condition is None or not condition.mask.any() else self.pictures)
        size = (
            config.in_channels,
            latent.frames if times is None else len(times),
            latent.height,
            latent.width,
        )
        condition = none(size) if condition is None else condition
        self._expected = None
        with self._timed("text"):
            words = [suffixed(prompt, drawing.prompt_suffix) for prompt in prompts]
            others = drawing.copies(known=bool(condition.mask.any())) - 1
            text = self.text.encode(words + [drawing.negative_prompt] * len(prompts) * others)
        frames, rows, columns = grid(size, config.patch)
        tokens = frames * rows * columns
        sigmas, timesteps = self.parts.scheduler.times(drawing.steps, tokens, frames, drawing.shift)
        begin = min(drawing.steps - 1, round((1 - drawing.strength) * drawing.steps))
        noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        packed = pack(noise, config.patch, None if times is None else [times] * len(seeds))
        x = packed.tokens  # (N, D)
        scales = scales_of(drawing, condition, config.patch, sigmas if timesteps is None else timesteps / 1000)
        denoise = self._denoiser(packed, condition, text, drawing, x, scales)
        sigmas = sigmas[begin:]
        if timesteps is not None:
            denoise = at_timesteps(denoise, sigmas, timesteps[begin:] / 1000)
        if start is not None:
            x = add_noise(FLOW, patchify(start, config.patch)[0].repeat(len(seeds), 1), x, sigmas[0])
        if self.glimpses:
            denoise = self._expecting(denoise, packed)
        sigmas = sigmas.to(self.device)
        callback = (lambda done, _: step(done)) if step else None
        with self._timed("dit"):
            x = by_name(drawing.sampler)(denoise, x.to(self.device), sigmas, callback)
        if config.holding != "clip":
            known_tokens, mask = (value.repeat(len(seeds), 1).to(x) for value in condition.tokens(config.patch))
            x, _ = place_known(x, x.new_zeros(len(x)), known_tokens, mask)
        return unpack(x, packed, config.patch)

    def _denoiser(
        self,
        packed: Packed,
        condition: Conditions,
        text: TextStates,
        drawing: Drawing,
        noise: Tensor,
        scales: Scales,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """denoise(x (N, D), t ()) -> velocity (N, D), both float32; guided when there are two or three texts a video.

        What is known stands clean among the noisy tokens, or only beside them, as the model was taught. One that was
        taught neither would take it for a sample of less noise: for it, what is known is as noisy as the rest, by the
        `noise` (N, D) that the sample began with (replacement, Song et al. 2021, sec. 5).
        """
        videos, holding = len(packed.shapes), self.dit.config.holding
        copies = (len(text.cu_seqlens) - 1) // videos  # all videos with the prompt, then without, see `Drawing.copies`
        last = int(packed.cu_seqlens[-1])
        known, mask = (value.repeat(videos * copies, 1).to(self.device, self.dtype)
                       for value in condition.tokens(self.dit.config.patch))  # fmt: skip
        for value in (known, mask):
            value[2 * last :] = 0  # the third copy sees nothing of what is known
        actions = None
        if condition.actions is not None:
            actions = frames_to_tokens(condition.actions, condition.mask.shape, self.dit.config.patch)
            actions = actions.repeat(videos * copies, 1).to(self.device)
        coords = packed.coords.repeat(copies, 1).to(self.device)
        cu = torch.cat([packed.cu_seqlens] + [packed.cu_seqlens[1:] + last * i for i in range(1, copies)])
        cu = cu.to(self.device)
        told = self._told(text, condition)
        # What the blocks read of the prompts is the same at every step, but for how many copies are asked.
        reading = cache(lambda dit, count: dit.read(told.first(count * videos)))
        kept = cache(lambda dit, count: self._kept(drawing))  # steps are alike if they ask the same of the same model
        eps = noise.to(self.device).repeat(copies, 1)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            dit, most = self._expert(t, drawing)
            scale, image_scale = scales(float(t), most)
            beside = isinstance(image_scale, Tensor) or image_scale != 1
            count = 3 if beside else 2 if scale != 1 else 1
            rows, ends = count * last, count * videos + 1
            tokens, timestep = x.repeat(count, 1), t.expand(count * len(x))
            if holding == "clean":
                tokens, timestep = place_known(tokens, timestep, known[:rows], mask[:rows])
            elif holding == "noisy":
                tokens, _ = place_known(tokens, timestep, add_noise(FLOW, known.float(), eps, t)[:rows], mask[:rows])
            velocity = dit(
                tokens,
                coords[:rows],
                cu[:ends],
                timestep.float(),
                reading(dit, count),
                known=known[:rows],
                mask=mask[:rows],
                reuse=kept(dit, count),
                **({} if actions is None else {"actions": actions[:rows]}),
            ).float()
            match velocity.chunk(count):
                case (cond, uncond):
                    return cfg(cond, uncond, scale, drawing.guidance_rescale)
                case (cond, no_text, neither):
                    if isinstance(image_scale, Tensor):
                        image_scale = image_scale.to(x).repeat(videos, 1)
                    return cfg_text_image(cond, no_text, neither, scale, image_scale, drawing.guidance_rescale)
            return velocity

        return denoise

    def _expecting(
        self, denoise: Callable[[Tensor, Tensor], Tensor], packed: Packed
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`denoise` that remembers which finished latents, x0 = x - t v, its last answer leads to."""

        def remembering(x: Tensor, t: Tensor) -> Tensor:
            velocity = denoise(x, t)
            self._expected = lambda: unpack(x - t * velocity, packed, self.dit.config.patch)
            return velocity

        return remembering

    def _kept(self, drawing: Drawing) -> Reuse | None:
        """What steps may borrow from each other, where they may."""
        if not drawing.reuse:
            return None
        self.reuses.append(Reuse(drawing.reuse))
        return self.reuses[-1]

    def _told(self, text: TextStates, condition: Conditions) -> Told:
        """Prompts, and the same pictures beside each of them."""
        padding = None if text.padding is None else text.padding.to(self.device)
        vector = None if text.pooled is None else text.pooled.to(self.device, self.dtype)
        told = Told(text.states.to(self.device, self.dtype), text.cu_seqlens.to(self.device), padding, vector)
        if condition.pictures is None:
            return told
        samples, rows = len(text.cu_seqlens) - 1, len(condition.pictures)
        image = condition.pictures.to(self.device, self.dtype).repeat(samples, 1)
        return told._replace(image=image, cu_image=torch.arange(samples + 1, device=self.device) * rows)

    def _expert(self, t: Tensor, drawing: Drawing) -> tuple[DiT | MMDiT, float]:
        """The transformer of a time, and the scale of its guidance: the first one's from `boundary` on."""
        if self.low is None:
            return self.dit, drawing.guidance_scale
        # Compared as they are stored: 900 of 1000 in float32 lies below the number 0.9.
        if bool(t >= t.new_tensor(self.parts.boundary)):
            return self._awake(self.dit, self.low), drawing.guidance_scale
        scale = drawing.guidance_scale if drawing.guidance_scale_2 is None else drawing.guidance_scale_2
        return self._awake(self.low, self.dit), scale

    def _awake(self, dit: DiT | MMDiT, other: DiT | MMDiT) -> DiT | MMDiT:
        """An expert with its weights; where it has none they are read, once the other's are given up unless there is
        room for both."""
        if is_hollow(dit):
            with self._timed("load"), torch.inference_mode(False):  # weights are as any that are read
                if not self._both:
                    self._sleep(other)
                self._experts[dit].fill(dit, self.dtype, self.device)
        return dit

    @staticmethod
    def _sleep(dit: DiT | MMDiT) -> None:
        """Gives up an expert's weights."""
        dit.to("meta")
        return_freed_memory()

    @torch.inference_mode()
    def condition(self, canvas: Canvas) -> Conditions:
        """What is known of a canvas, as whitened latents and a mask over cells; unknown stretches are not encoded but
        for a model that reads clips."""
        pictures = self._pictures(canvas) if self.dit.config.image_width else None
        canvas = canvas.padded(self.grid)
        if self.dit.config.holding == "clip":
            with self._timed("vae"):
                clip = self.encode(canvas.frames, known=canvas.known)
            return Conditions(clip, torch.from_numpy(canvas.cells_of_frames(self.grid)).float(), pictures=pictures)
        cells = torch.from_numpy(canvas.cells(self.grid)).float()[None]  # (1, T', H', W')
        conditions = none((self.dit.config.in_channels, *cells.shape[1:]))
        frames = canvas.filled()
        with self._timed("vae"):
            for first, stop in runs(cells.flatten(2).amax((0, 2)).bool().tolist()):
                conditions.known[:, first:stop] = self.encode(frames, first, stop)
        return Conditions(conditions.known * cells, cells, pictures=pictures)

    def _pictures(self, canvas: Canvas) -> Tensor:
        """States (K, image_width) of the first frame of which something is known, for some models of the last too."""
        shown = np.flatnonzero(canvas.known.any((1, 2)))
        both = self.pictures == 2
        check_pictures(self.pictures, 2 if both and {0, len(canvas.known) - 1} <= set(shown) else min(len(shown), 1))
        frames = [
            Canvas(canvas.frames[t][None], canvas.known[t][None]).filled() for t in shown[[0, -1] if both else [0]]
        ]
        pixels = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (P, 3, H, W)
        assert self.parts.image is not None
        with self._timed("image"):
            return self.parts.image.encode(pixels).flatten(0, 1)

    @torch.inference_mode()
    def encode(
        self, frames: np.ndarray, first: int = 0, stop: int | None = None, known: np.ndarray | None = None
    ) -> Tensor:
        """Whitened latents (C, stop - first, H', W') of the latent frames `first` to `stop` - 1 of a video uint8
        (T, H, W, 3) of 4k+1 frames; streamed, and beginning one latent frame early for what lies before. An autoencoder
        of whole clips takes them for a clip of their own, which begins with the last frame of the first.

        `known`: bool (T, H, W); the other pixels are grey.
        """
        temporal = self.vae.config.temporal
        cut = self._cut(*(-(-side // self.vae.config.spatial) for side in frames.shape[1:3]))
        stop = (len(frames) - 1) // temporal + 1 if stop is None else stop
        whole = self.vae.whole_clips
        lead = first if whole else max(0, first - 1)
        begin = temporal * first if whole else max(0, temporal * (lead - 1) + 1)
        end, step = temporal * (stop - 1) + 1, temporal * cut.frames

        def chunks() -> Iterator[Tensor]:
            for i in range(begin, end, step):
                part = slice(i, min(i + step, end))
                pixels = torch.from_numpy(np.ascontiguousarray(frames[part])).permute(3, 0, 1, 2)[None].float()
                pixels = pixels / 127.5 - 1  # (1, 3, t, H, W)
                grey = pixels if known is None else pixels * torch.from_numpy(np.ascontiguousarray(known[part]))
                yield grey.to(self.device, self.dtype)

        stream = encode_stream(self.vae, chunks(), started=lead > 0, cut=cut)
        means = torch.cat([posterior.mean[0].float().cpu() for posterior in stream], dim=1)
        return self.parts.whitening.forward(means[:, first - lead :])

    @torch.inference_mode()
    def decode(self, latents: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Whitened latents in pieces (C, t', H', W') -> pixels uint8 (t, H, W, 3), in constant memory but for an
        autoencoder of whole clips; in tiles, which the plan takes where whole frames are too large, after the last
        piece."""
        pieces = (piece for piece in latents if piece.shape[1])
        first = next(pieces, None)
        if first is None:
            return
        raw = (self.parts.whitening.inverse(piece.float().cpu())[None].to(self.device, self.dtype)
               for piece in itertools.chain([first], pieces))  # fmt: skip
        stream = decode_stream(self.vae, raw, self._cut(*first.shape[2:]), shown=in_bytes)
        while True:
            with self._timed("vae"):
                pixels = next(stream, None)
            if pixels is None:
                return
            yield pixels[0].permute(1, 2, 3, 0).numpy()

    def _cut(self, height: int, width: int) -> Cut:
        """How frames of so many latent cells are cut: as the last plan of such frames says."""
        return self._cuts.get((height, width)) or standard_cut(height, width)

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.timings, name, self.device)


Scales = Callable[[float, float], tuple[float, float | Tensor]]
"""scales(t, scale of the prompt) -> what that is at t, and the scale of what is known: one, or (n, 1) of the tokens."""


def scales_of(drawing: Drawing, condition: Conditions, patch: Patch, times: Tensor) -> Scales:
    """How a drawing changes its scales over the `times` (steps,) that the model is asked at.

    Where guidance oscillates and pictures are known, first, last or both, the scale of what is known also rises from
    frame to frame (`image_ramp`), as Open-Sora 2.0 has it.
    """
    steps = {t: step for step, t in enumerate(times.tolist())}
    beside = 1.0
    if drawing.guidance_scale_image is not None and bool(condition.mask.any()):
        beside = drawing.guidance_scale_image
    pictures = not condition.mask[:, 1:-1].any()

    def scales(t: float, text: float) -> tuple[float, float | Tensor]:
        text, image = (scale_at(t, scale, drawing.guidance_interval) for scale in (text, beside))
        if not drawing.guidance_oscillation:
            return text, image
        text, image = (oscillating(scale, steps[t]) for scale in (text, image))
        if image <= 1 or not pictures:
            return text, image
        ramp = image_ramp(image, steps[t], drawing.steps, condition.mask.shape[1])
        return text, frames_to_tokens(ramp[:, None], condition.mask.shape, patch)

    return scales


def reused(each: Sequence[Reuse]) -> dict[str, float]:
    """How many answers of the model were asked for and borrowed, and by how much a borrowed one errs, see `Reuse`."""
    errors = [error for one in each for error in one.errors]
    counts = {"asked": sum(one.asked for one in each), "borrowed": sum(one.reused for one in each)}
    return counts | ({"error": round(float(np.mean(errors)), 4)} if errors else {})


class _Timer:
    """Adds the seconds of a `with` block to `timings[name]`, but for those that were added to others within."""

    def __init__(self, timings: dict[str, float], name: str, device: torch.device) -> None:
        self.timings, self.name, self.device = timings, name, device

    def __enter__(self) -> None:
        self.start, self.others = time.perf_counter(), self._others()

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.start - (self._others() - self.others)
        self.timings[self.name] = self.timings.get(self.name, 0.0) + seconds

    def _others(self) -> float:
        return sum(seconds for name, seconds in self.timings.items() if name != self.name)


def load(
    path: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    max_memory: float | None = None,
    compiled: bool = False,
) -> Pipeline:
    """The pipeline of a model folder or hub id (None: the shipped model), `compiled` as by `Pipeline.compile`.

    Half-precision weights of public models are computed with as they are unless `dtype` is given. Raises UserError as
    `checkpoints.folder.load_parts`.
    """
    keep_freed_memory()
    folder = layout.check(path)
    if compiled:
        check_compiler(chosen_device(device))
    pipeline = Pipeline(load_parts(folder), model_hash(folder), device, dtype, folder, max_memory)
    return pipeline.compile() if compiled else pipeline


def check_memory(folder: Path, request: Request, max_memory: float | None = None, **about: Any) -> Cut:
    """How the frames of a request to a model folder would be cut, of which nothing is loaded; `about` as in
    `generate.plan.Setting`. Raises UserError with the nearest size or length that fits where it does not fit."""
    model = Outline.of_folder(folder)
    return fitting_cut(model, request, setting_of(model, folder, None, max_memory, **about))


def setting_of(
    model: Outline, folder: Path, device: str | None = None, max_memory: float | None = None, **about: Any
) -> Setting:
    """Where and how `load` would run the model of a folder."""
    chosen = chosen_device(device)
    return setting(chosen, model.half or fast_dtype(chosen), layout.defaults(folder), max_memory, **about)


class Deferred:
    """A pipeline that is loaded when its weights are needed: what was asked for is checked before that."""

    def __init__(
        self, folder: Path, defaults: Mapping[str, Any], max_memory: float | None = None, compiled: bool = False
    ) -> None:
        self.folder, self.max_memory, self.compiled = folder, max_memory, compiled
        self.grid, self.driven, self.pictures = layout.traits(folder)
        self.defaults = Request("", **known_defaults(defaults), grid=self.grid)
        self.window = window_of(defaults, self.grid)

    def request(self, prompt: str, **given: Any) -> Request:
        """A valid request that fits into memory."""
        request = request_of(self.defaults, prompt, **given)
        check_memory(self.folder, request, self.max_memory, reads=True)
        return request

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":
            self.pipeline = load(self.folder, max_memory=self.max_memory, compiled=self.compiled)
            return self.pipeline
        return getattr(self.pipeline, name)


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, else the fastest here."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_compiler(device: torch.device) -> None:
    """Raises UserError where `torch.compile` lacks what it needs: on a CPU a compiler of C++."""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(command) is None:
        raise UserError(f"--compile needs {command}, a compiler of C++; install it, or leave --compile out")


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32 (fp16 on a CPU is slower than either)."""
    if device.type == "cuda":  # one that is planned for need not be here
        return torch.float32 if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else torch.bfloat16
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def _copied(parts: Parts) -> Parts:
    """With modules of their own, but for the encoders, whose type stays."""
    return replace(parts, vae=copy.deepcopy(parts.vae), dit=copy.deepcopy(parts.dit), low=copy.deepcopy(parts.low))


def half_of(module: nn.Module) -> torch.dtype | None:
    """The half-precision type that most of its weights are stored in, if that is one: to widen them takes memory."""
    counts: Counter[torch.dtype] = Counter()
    for value in module.parameters():
        counts[value.dtype] += value.numel()
    most = counts.most_common(1)[0][0]
    return most if most in (torch.float16, torch.bfloat16) else None


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3)."""
    frames: np.ndarray = in_bytes(pixels).permute(1, 2, 3, 0).numpy()
    return frames


def in_bytes(pixels: Tensor) -> Tensor:
    """Values in [-1, 1] as uint8 on the CPU."""
    return ((pixels.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()
