"""The whole chain: prompts -> text states -> denoised latents -> pixels, for many videos packed in one sequence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline.checkpoints import layout
from worldline.checkpoints.folder import LayoutName, Parts, convert, save_pretrained
from worldline.checkpoints.weights import half_of
from worldline.generate.canvas import Canvas, fitted, timeline
from worldline.generate.codec import Codec
from worldline.generate.denoiser import Denoiser, reused
from worldline.generate.device import Timings, chosen_device, fast_dtype
from worldline.generate.drawing import Drawing, Progress
from worldline.generate.experts import Experts
from worldline.generate.plan import MAX_PACKED
from worldline.generate.reel import Reel
from worldline.generate.request import (
    MAX_VIDEOS,
    Request,
    check_pictures,
    check_prompt,
    known_defaults,
    request_of,
    suffixed,
    window_of,
)
from worldline.generate.result import Result
from worldline.generate.room import Room
from worldline.media.provenance import provenance
from worldline.shapes import Grid


class Pipeline:
    """A loaded model. Device and dtype are chosen here, once; every video is a function of (prompt, seed, settings).

    It is composed of a `codec` between pixels and latents, a `denoiser` with the `experts` that it asks, the `room`
    that they have in memory, and a `reel` for videos of any length.

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
        self.parts, self.source, self.model_hash = parts, source, identity
        self.device = chosen_device(device)
        self.dtype = dtype or half_of(parts.dit.parameters()) or fast_dtype(self.device)
        # Copies unless `source`: the parts may belong to a training run, which needs them as they are.
        own = parts if source else _copied(parts)
        self.grid = Grid(own.vae.config.temporal, own.vae.config.spatial, own.dit.config.patch)
        self.timings = Timings(self.device)
        self.experts = Experts(own, self.device, self.dtype, self.timings)
        self.codec = Codec(own, self.grid, self.device, self.dtype, self.timings)
        self.denoiser = Denoiser(own, self.experts, self.grid, self.timings)
        self.defaults = Request("", **known_defaults(parts.defaults), grid=self.grid)
        self.window = window_of(parts.defaults, self.grid)
        self.room = Room(parts, self.codec, self.denoiser, max_memory)
        self.reel = Reel(self.codec, self.denoiser, self.room, self.window, parts.defaults)
        self._before = 0  # videos that were drawn in sequences before the one in work

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

        `image`: uint8 (H, W, 3), kept as the first frame. `long`: see `Reel.paint`. `frames=1` makes a picture.
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

    def run(
        self,
        request: Request,
        image: np.ndarray | None = None,
        progress: Progress | None = None,
        how: str = "auto",
    ) -> Result:
        """Make the videos of a valid request; `image` uint8 (H, W, 3) as in `generate`, `how` as in `Reel.paint`."""
        check_pictures(self.pictures, 0 if image is None else 1)
        seeds = [request.seed + index for index in range(request.num_videos)]
        canvas = None
        if image is not None:
            picture = fitted(image, request.height, request.width)[None]
            canvas = timeline([picture, request.frames - 1] if request.frames > 1 else [picture])
        self.room.prepare(request, how, reads=image is not None)
        self.timings.clear()
        if self.reel.plan_for(self.grid.latent(request.padded).frames, how) == "whole":
            videos = self.draw([request.prompt] * len(seeds), seeds, Drawing.of(request), canvas, progress)
            videos = [video[: request.frames, : request.height, : request.width] for video in videos]
        else:
            asked = [replace(request, seed=seed) for seed in seeds]
            videos = [np.stack(list(self.reel.stretch(one, image, how, progress))) for one in asked]
        about: dict[str, Any] = {"image": False} if image is None else {"image": True, "known": self.holding}
        return Result(videos, request.fps, self.record(request, **about), dict(self.timings))

    def together(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Result]:
        """The videos of requests that differ in prompt and seed alone, packed into one sequence: of each the same as
        `run` makes of it alone, but for rounding."""
        first = requests[0]
        self.room.prepare(first)
        self.timings.clear()
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
        its middle, None where it is not in work. For those who set `denoiser.glimpses`."""
        expected = [] if self.denoiser.expected is None else self.denoiser.expected()
        if not 0 <= index - self._before < len(expected):
            return None
        latents = expected[index - self._before]
        middle = latents.shape[1] // 2
        return next(self.codec.decode([latents[:, middle : middle + 1]]))[0]

    def record(self, request: Request, **more: Any) -> dict[str, Any]:
        """What the files of a request say of their making."""
        settings = {key: value for key, value in request.as_dict().items() if key not in ("prompt", "seed")}
        cells = request.grid.latent(request.padded)
        cut = self.codec.cut(cells.height, cells.width)
        settings |= {"decoded": str(cut)} if cut.blended else {}
        settings |= {"reused": reused(self.denoiser.reuses)} if request.reuse else {}
        return provenance(request.prompt, request.seed, self.model_hash, model=self.name, **settings, **more)

    @property
    def name(self) -> str:
        """What the model is called; "" for parts that no folder holds."""
        return "" if self.source is None else layout.name_of(self.source)

    @property
    def holding(self) -> str:
        """How what is known is held: "masks", as the model was trained to, or "replacement" for one that was not."""
        return "replacement" if self.experts.config.holding == "noisy" else "masks"

    @property
    def pictures(self) -> int:
        """How many it cannot do without: 1, the first; 2, the first and the last."""
        return self.experts.config.pictures

    @property
    def driven(self) -> bool:
        """Whether it was taught worlds that are driven by inputs."""
        return self.experts.config.actions > 0

    def answer(self, prompts: Sequence[str], seeds: Sequence[int], **given: Any) -> list[np.ndarray]:
        """One video uint8 (T, H, W, 3) per (prompt, seed) with the model's defaults but for what is `given`, as for
        `request`: what an evaluation asks for. Raises UserError where they do not fit into memory."""
        asked = self.request("", num_videos=min(max(1, len(prompts)), MAX_VIDEOS), **given)
        self.room.prepare(asked, "whole")
        videos = self.draw(prompts, seeds, Drawing.of(asked))
        return [video[: asked.frames, : asked.height, : asked.width] for video in videos]

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
            truncated = self.denoiser.text.encode([told]).truncated
            if truncated is not None and bool(truncated[0]):
                lines.append("the prompt is longer than the model reads; its end is ignored")
        return lines

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
        condition = None if canvas is None else self.codec.condition(canvas)
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
                latents = self.denoiser.sample(prompts[group], seeds[group], drawing, condition, step)
                videos += [np.concatenate(list(self.codec.decode([latent]))) for latent in latents]
        finally:
            self._before = 0
        if canvas is None:
            return videos
        return [np.stack(list(canvas.padded(self.grid).restored([video]))) for video in videos]


def _copied(parts: Parts) -> Parts:
    """With modules of their own, but for the encoders, whose type stays."""
    return replace(parts, vae=copy.deepcopy(parts.vae), dit=copy.deepcopy(parts.dit), low=copy.deepcopy(parts.low))
