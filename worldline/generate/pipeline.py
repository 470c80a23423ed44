"""The whole chain: prompts -> text states -> denoised latents -> pixels, for many videos packed in one sequence."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.checkpoints.folder import Parts, load_parts, model_hash
from worldline.checkpoints.layout import resolve
from worldline.diffusion.guidance import cfg, scale_at
from worldline.diffusion.samplers import by_name
from worldline.diffusion.timesteps import schedule
from worldline.dit.conditions import Conditions, first_frame, none, place_known
from worldline.dit.patchify import Packed, pack, unpack
from worldline.errors import UserError
from worldline.generate.request import Request, frames_of, read_fps
from worldline.generate.result import Result
from worldline.media.provenance import provenance
from worldline.nn.memory import keep_freed_memory
from worldline.shapes import VideoShape
from worldline.text import CachedText, TextStates
from worldline.vae.streaming import decode_stream

Progress = Callable[[int, int], None]
MAX_PACKED = 2**14  # tokens in one forward pass; more videos are made one group after the other


@dataclass(frozen=True)
class Drawing:
    """What sampling needs to know beside the prompts: size (divisible, see VideoShape.snapped), steps, guidance."""

    shape: VideoShape
    steps: int = 20
    guidance_scale: float = 5.0
    negative_prompt: str = ""
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = "euler"

    @staticmethod
    def of(request: Request) -> Drawing:
        """The part of a request that sampling needs."""
        shared = {field.name: getattr(request, field.name) for field in fields(Drawing) if field.name != "shape"}
        return Drawing(request.padded, **shared)


class Pipeline:
    """A loaded model. Device and dtype are chosen here, once; every video is a function of (prompt, seed, settings)."""

    def __init__(
        self,
        parts: Parts,
        identity: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.parts = parts
        self.model_hash = identity
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or fast_dtype(self.device)
        # Copies: the parts may belong to a training run, which needs them as they are.
        self.vae = copy.deepcopy(parts.vae).to(self.device, self.dtype)
        self.dit = copy.deepcopy(parts.dit).to(self.device, self.dtype)
        self.text = CachedText(parts.text)
        self.defaults = Request("-", **_known(parts.defaults))
        self.timings: dict[str, float] = {}

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
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        num_videos: int = 1,
        image: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Make `num_videos` videos of a prompt; what is not given comes from the model's own defaults.

        `image`: uint8 (H, W, 3), kept as the first frame. `frames=1` makes a picture. `progress(done, total)`
        is called after every step. Raises UserError for any value that cannot be.
        """
        given: dict[str, Any] = {"width": width, "height": height, "steps": steps, "sampler": sampler}
        given |= {"guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale}
        given |= {"guidance_interval": guidance_interval}
        chosen = {name: value for name, value in given.items() if value is not None}
        rate = self.defaults.fps if fps is None else read_fps(fps)
        chosen |= {"fps": rate, "frames": frames_of(seconds, frames, rate, self.defaults.frames)}
        chosen |= {"negative_prompt": negative_prompt, "seed": seed, "num_videos": num_videos}
        return self.run(replace(self.defaults, prompt=prompt, **chosen), image, progress)

    def run(self, request: Request, image: np.ndarray | None = None, progress: Progress | None = None) -> Result:
        """Make the videos of a valid request; `image` uint8 (H, W, 3) as in `generate`."""
        seeds = [request.seed + index for index in range(request.num_videos)]
        picture = None if image is None else fitted(image, request.height, request.width)
        self.timings = {}
        videos = self.draw([request.prompt] * len(seeds), seeds, Drawing.of(request), picture, progress)
        videos = [video[: request.frames, : request.height, : request.width] for video in videos]
        settings = {key: value for key, value in request.as_dict().items() if key not in ("prompt", "seed")}
        record = provenance(request.prompt, request.seed, self.model_hash, **settings, image=image is not None)
        return Result(videos, request.fps, record, dict(self.timings))

    def answer(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        """One video uint8 (T, H, W, 3) per (prompt, seed) with the model's defaults: what an evaluation asks for."""
        asked = self.defaults
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
            truncated = self.text.encode([request.prompt]).truncated
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
        picture: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """One video uint8 (T, H, W, 3) per (prompt, seed), all of the divisible shape `drawing.shape`.

        `picture` uint8 (h, w, 3), h and w at most H and W, begins every video and is copied to its first frame.
        """
        known = None if picture is None else self._encode_picture(picture, drawing.shape)
        each = drawing.shape.latent().tokens().count * (1 if drawing.guidance_scale == 1 else 2)
        size = max(1, MAX_PACKED // each)
        groups = [slice(start, start + size) for start in range(0, len(prompts), size)]
        videos: list[np.ndarray] = []
        for index, group in enumerate(groups):
            total = drawing.steps * len(groups)
            done = drawing.steps * index
            step = (lambda i, done=done, total=total: progress(done + i, total)) if progress else None
            latents = self.sample(prompts[group], seeds[group], drawing, known, step)
            videos += [self._decode(latent) for latent in latents]
        if picture is not None:
            for video in videos:
                video[0, : picture.shape[0], : picture.shape[1]] = picture
        return videos

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        drawing: Drawing,
        known: Tensor | None = None,
        step: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Whitened latents (C, T', H', W') float32, one per (prompt, seed), denoised together in one packed sequence.

        `known`: whitened latents (C, 1, H', W') of the first frame. Noise is drawn on the CPU from each video's own
        seed, so that a video does not depend on its neighbours or on the device.
        """
        guided = drawing.guidance_scale != 1
        with self._timed("text"):
            words = list(prompts) + ([drawing.negative_prompt] * len(prompts) if guided else [])
            text = self.text.encode(words)
        latent = drawing.shape.latent()
        size = (self.dit.config.in_channels, latent.frames, latent.height, latent.width)
        noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        condition = none(size) if known is None else first_frame(known.cpu(), latent.frames)
        packed = pack(noise, self.dit.config.patch)
        denoise = self._denoiser(packed, condition, text, drawing)
        sigmas = schedule(drawing.steps, self.parts.scheduler.shift).to(self.device)
        callback = (lambda done, _: step(done)) if step else None
        with self._timed("dit"):
            x = by_name(drawing.sampler)(denoise, packed.tokens.to(self.device), sigmas, callback)
        known_tokens, mask = (value.repeat(len(seeds), 1).to(x) for value in condition.tokens(self.dit.config.patch))
        x, _ = place_known(x, x.new_zeros(len(x)), known_tokens, mask)
        return unpack(x, packed, self.dit.config.patch)

    def _denoiser(
        self, packed: Packed, condition: Conditions, text: TextStates, drawing: Drawing
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """denoise(x (N, D), t ()) -> velocity (N, D), both float32; guided when there are two texts a video."""
        videos = len(packed.shapes)
        copies = (len(text.cu_seqlens) - 1) // videos  # 2 with guidance: all videos with the prompt, then without
        known, mask = (value.repeat(videos * copies, 1).to(self.device, self.dtype)
                       for value in condition.tokens(self.dit.config.patch))  # fmt: skip
        coords = packed.coords.repeat(copies, 1).to(self.device)
        last = int(packed.cu_seqlens[-1])
        cu = torch.cat([packed.cu_seqlens] + [packed.cu_seqlens[1:] + last * i for i in range(1, copies)])
        cu = cu.to(self.device)
        states = text.states.to(self.device, self.dtype)
        cu_text = text.cu_seqlens.to(self.device)
        words = int(text.cu_seqlens[videos])

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            scale = 1.0 if copies == 1 else scale_at(float(t), drawing.guidance_scale, drawing.guidance_interval)
            if scale == 1.0:  # the prompt alone: the first of the copies
                tokens, timestep = place_known(x, t.expand(len(x)), known[:last], mask[:last])
                velocity = self.dit(
                    tokens,
                    coords[:last],
                    cu[: videos + 1],
                    timestep.float(),
                    states[:words],
                    cu_text[: videos + 1],
                    known[:last],
                    mask[:last],
                )
                return velocity.float()  # type: ignore[no-any-return]
            x = x.repeat(copies, 1)  # (copies*N, D)
            tokens, timestep = place_known(x, t.expand(len(x)), known, mask)
            velocity = self.dit(tokens, coords, cu, timestep.float(), states, cu_text, known, mask).float()
            cond, uncond = velocity.chunk(2)
            return cfg(cond, uncond, scale, drawing.guidance_rescale)

        return denoise

    def _encode_picture(self, picture: np.ndarray, shape: VideoShape) -> Tensor:
        """uint8 (h, w, 3), padded by its edge to the size of `shape`, as whitened latents (C, 1, H', W')."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1  # (3, h, w)
        missing = (0, shape.width - picture.shape[1], 0, shape.height - picture.shape[0])
        pixels = F.pad(pixels[None], missing, mode="replicate")[:, :, None]  # (1, 3, 1, H, W)
        with self._timed("vae"):
            mean = self.vae.encode(pixels.to(self.device, self.dtype)).mean[0].float().cpu()
        return self.parts.whitening.forward(mean)

    def _decode(self, latents: Tensor) -> np.ndarray:
        """Whitened latents (C, T', H', W') -> uint8 (T, H, W, 3), streamed."""
        with self._timed("vae"):
            z = self.parts.whitening.inverse(latents.float().cpu())[None].to(self.device, self.dtype)
            return np.concatenate([to_uint8(chunk[0]) for chunk in decode_stream(self.vae, z)])

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.timings, name, self.device)


class _Timer:
    """Adds the seconds of a `with` block to `timings[name]`."""

    def __init__(self, timings: dict[str, float], name: str, device: torch.device) -> None:
        self.timings, self.name, self.device = timings, name, device

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.timings[self.name] = self.timings.get(self.name, 0.0) + time.perf_counter() - self.start


def load(path: str | Path | None = None, device: str | None = None, dtype: torch.dtype | None = None) -> Pipeline:
    """The pipeline of a model folder (None: the shipped model). Raises UserError as `checkpoints.folder.load_parts`."""
    keep_freed_memory()
    parts = load_parts(path)
    return Pipeline(parts, model_hash(resolve(path)), device, dtype)


def _known(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a model folder that a Request has; raises UserError for a frame rate that none can be."""
    names = ("width", "height", "frames", "steps", "sampler", "guidance_scale", "guidance_rescale")
    values = {name: defaults[name] for name in names if name in defaults}
    if "guidance_interval" in defaults:
        values["guidance_interval"] = tuple(defaults["guidance_interval"])  # JSON gives lists
    return {**values, "fps": read_fps(defaults.get("fps", Request.fps))}


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32 (fp16 on a CPU is slower than either)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3)."""
    scaled = (pixels.float() + 1) * 127.5
    frames: np.ndarray = scaled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    return frames


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture uint8 (h, w, 3) scaled to cover (height, width) and cropped at its centre; raises UserError."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        found = f"{picture.dtype} {picture.shape}"
        raise UserError(f"image: expected uint8 (H, W, 3), found {found}; read it with worldline.media.read.read_image")
    if picture.shape[:2] == (height, width):
        return picture
    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = max(height, round(picture.shape[0] * scale)), max(width, round(picture.shape[1] * scale))
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    pixels = pixels[:, top : top + height, left : left + width].round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()  # type: ignore[no-any-return]
