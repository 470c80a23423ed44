"""What a video would take before anything is loaded: tokens, work, memory stage by stage, and how it is to be cut.

Memory is not estimated from formulas: the model's own code runs on tensors without numbers (`footprint`). What stays a
guess is what the kernels and the C library take besides; docs/performance.md holds the plan against what was measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from worldline.checkpoints.keymap import LOT
from worldline.checkpoints.outline import COMPUTED, SECOND, Outline
from worldline.errors import UserError
from worldline.generate import long
from worldline.generate.cuts import cuts, first_fitting
from worldline.generate.footprint import SAMPLER, dit_bytes
from worldline.generate.request import MIN_SIDE, Request, free_memory, how_of, window_of
from worldline.shapes import VideoShape
from worldline.vae.codec import Cut

MAX_PACKED = 2**14  # tokens in one forward pass; more videos are made one group after the other
# What the C library holds of freed tensors between living ones, and kernels of sums in float32: as measured on a CPU.
SLACK = {
    torch.float32: {"dit": 1.2, "encode": 1.2, "decode": 1.2},
    torch.bfloat16: {"dit": 1.4, "encode": 1.45, "decode": 1.6},
}
NO_SLACK = {"dit": 1.0, "encode": 1.0, "decode": 1.0}
WORKSPACE = 100e6  # bytes of kernels, threads and what torch loads when it first computes
TRANSFORMERS = 155e6  # bytes of that package once it is imported
EVALUATIONS = {"heun": 2}  # of the model in a step; one in all others


@dataclass(frozen=True)
class Plan:
    """What making the videos of a request comes to.

    Attributes:
        asked, drawn: shape of the video and the one that is painted before it is trimmed to that.
        tokens: of one sample in one pass; `samples` of them run together.
        passes: of the sampler; `how` they divide a long video. experts: of which one is in memory at a time.
        flops: floating-point operations of the transformer, over all passes, steps and videos.
        cut: how the autoencoder takes the video.
        stages: peak bytes of each stage on the device; those in `host` are of the machine's own memory.
        limit: bytes that may be taken, None where nobody knows.
    """

    asked: VideoShape
    drawn: VideoShape
    tokens: int
    text_rows: int
    samples: int
    passes: int
    how: str
    experts: int
    flops: int
    device: str
    dtype: str
    cut: Cut
    stages: Mapping[str, int]
    host: tuple[str, ...]
    limit: int | None

    @property
    def needed(self) -> Mapping[str, int]:
        """The stages that are held against the limit."""
        return self.stages if self.device == "cpu" else {k: v for k, v in self.stages.items() if k not in self.host}

    @property
    def peak(self) -> int:
        """The largest stage that is held against the limit."""
        return max(self.needed.values())

    @property
    def fits(self) -> bool:
        return self.limit is None or self.peak <= self.limit

    @property
    def trimmed(self) -> str | None:
        """What is painted and not shown."""
        if self.asked == self.drawn:
            return None
        a, b = self.drawn, self.asked
        return f"{a.width}x{a.height}, {a.frames} frames are drawn and trimmed to {b.width}x{b.height}, {b.frames}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable fields."""
        values = asdict(self)
        shown = ("asked", "drawn", "cut")
        return {**{k: v for k, v in values.items() if k not in shown}, "stages": dict(self.stages),
                **{name: asdict(getattr(self, name)) for name in shown}, "approximate": self.cut.blended,
                "peak": self.peak, "fits": self.fits, "trimmed": self.trimmed}  # fmt: skip

    def lines(self) -> list[str]:
        """For people."""
        shape = f"{self.asked.width}x{self.asked.height}, {self.asked.frames} frames"
        once = "in one pass" if self.passes == 1 else f"a pass, {self.passes} passes ({self.how})"
        lines = [f"{'video':9}{shape}"]
        lines += [f"{'':9}{self.trimmed}"] if self.trimmed else []
        lines.append(f"{'tokens':9}{self.tokens} {once}, {self.text_rows} rows of text at most, {self.samples} at once")
        lines.append(f"{'work':9}{self.flops / 1e12:.3g} TFLOP of the transformer")
        lines.append(f"{'device':9}{self.device}, {self.dtype}; autoencoder: {self.cut}")
        if self.experts == 2:
            lines.append(f"{'':9}two experts, of which one is counted: both stay in memory where there is room")
        for name, size in self.stages.items():
            where = " of the machine" if self.device != "cpu" and name in self.host else ""
            lines.append(f"{name:9}{size / 1e9:8.2f} GB{where}")
        if self.limit is not None:
            verdict = "fits" if self.fits else "does not fit"
            lines.append(f"{'peak':9}{self.peak / 1e9:8.2f} GB of {self.limit / 1e9:.2f} GB: {verdict}")
        return lines


@dataclass(frozen=True)
class Setting:
    """Where and how a request runs.

    Attributes:
        defaults: of the model, which say what its window is.
        held: bytes that the process holds now; `limit`: that it may hold at most.
        ready: the model is loaded, its weights among what is held.
        reads: known pixels are encoded. streamed: frames are given away as they are finished.
    """

    device: torch.device
    dtype: torch.dtype
    defaults: Mapping[str, Any]
    held: float = 0.0
    limit: float | None = None
    ready: bool = False
    reads: bool = False
    streamed: bool = False
    how: str = "auto"


def setting(
    device: str | torch.device,
    dtype: torch.dtype,
    defaults: Mapping[str, Any],
    max_memory: float | None = None,
    **about: Any,
) -> Setting:
    """The setting of this process, now: what it holds, and what it may hold at most."""
    device = torch.device(device)
    if device.type == "cpu":
        held = resident()
        return Setting(device, dtype, defaults, held, max_memory or held + free_memory(), **about)
    held, limit = 0.0, max_memory
    if device.type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        held = float(torch.cuda.memory_allocated(device))
        limit = max_memory or held + free
    return Setting(device, dtype, defaults, held, limit, **about)


def resident() -> float:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0.0


# ---- the plan --------------------------------------------------------------------------------------


def plan(model: Outline, request: Request, where: Setting) -> Plan:
    """The plan of a request; it is not refused, see `check`."""
    drawn, grid = request.padded, request.grid
    latent = grid.latent(drawn)
    how, window = how_of(where.how, latent.frames, where.defaults), window_of(where.defaults, grid)
    steps = long.plan([False] * latent.frames, window, how)
    copies = request.copies(where.reads)
    counts = [replace(latent, frames=len(step.times)).tokens(grid.patch).count for step in steps]
    videos = min(request.num_videos, max(1, MAX_PACKED // (copies * counts[0]))) if how == "whole" else 1
    evaluations = request.num_videos * request.steps * EVALUATIONS.get(request.sampler, 1) * copies
    base = where.held + WORKSPACE + (0 if where.ready else weights(model, where))
    slack = SLACK.get(where.dtype, SLACK[torch.float32]) if where.device.type == "cpu" else NO_SLACK
    frames = 0 if where.streamed else _frames_held(request, drawn)
    ways = ("encode", "decode") if where.reads else ("decode",)
    left = (where.limit or math.inf) - base - frames
    cut, coding = first_fitting(model.vae, where.dtype, latent, ways, left, slack)
    told = (model.text_rows, model.image_rows)
    kind: Any = type(model.dit)
    live = dit_bytes(kind, model.dit.config, max(counts), told, videos * copies, where.dtype)
    stages = {} if where.ready else loading(model, where)
    stages["dit"] = base + slack["dit"] * live
    if where.reads:
        stages["encode"] = base + 2 * _pixels(drawn) + coding["encode"]
    stages["decode"] = base + frames + coding["decode"]
    return Plan(
        asked=request.shape,
        drawn=drawn,
        tokens=max(counts),
        text_rows=model.text_rows,
        samples=videos * copies,
        passes=len(steps),
        how=how,
        experts=1 + (SECOND in model.loaded),
        flops=evaluations * sum(model.dit.flops(count, model.text_rows) for count in counts),
        device=where.device.type,
        dtype=str(where.dtype).removeprefix("torch."),
        cut=cut,
        stages={name: round(size) for name, size in stages.items()},
        host=("load", "text"),
        limit=None if where.limit is None else round(where.limit),
    )


def fitting_cut(model: Outline, request: Request, where: Setting) -> Cut:
    """How the frames of a request are cut; raises UserError as `check`, which is only asked where a bound so loose that
    no model comes near it does not settle the matter: to look closely takes two seconds."""
    if spare(model, request, where) >= 0:
        return standard(model, request)
    return check(model, request, where).cut


def spare(model: Outline, request: Request, where: Setting) -> float:
    """Bytes that are left in any case where frames are cut as memory is plenty; below 0 nothing is known."""
    if where.limit is None:
        return math.inf
    unread = 0 if where.ready else weights(model, where) + LOT
    loose = _loosely(model, request, where, standard(model, request)) + unread
    return where.limit - where.held - WORKSPACE - loose


def standard(model: Outline, request: Request) -> Cut:
    """How the frames of a request are cut where memory is plenty."""
    return next(cuts(model.vae, request.grid.latent(request.padded)))


def _loosely(model: Outline, request: Request, where: Setting, cut: Cut) -> float:
    """More bytes than are ever alive."""
    c, v, drawn = model.dit.config, model.vae.config, request.padded
    latent = request.grid.latent(drawn)
    each = latent.tokens(c.patch).count + model.text_rows + model.image_rows
    rows = each * request.copies(where.reads) * request.num_videos
    passes = 8.0 * rows * c.width * (24 + 3 * c.mlp_ratio) + 64.0 * SAMPLER * rows * c.token_width
    head: Any = model.vae.get_submodule("decoder.head")  # it reads the widest of what is finest
    pixels = (cut.frames + 2) * v.temporal * v.spatial**2 * latent.height * latent.width
    return max(passes, 96.0 * head.weight.shape[1] * pixels) + 2 * _frames_held(request, drawn)


def check(model: Outline, request: Request, where: Setting) -> Plan:
    """The plan of a request that fits. Raises UserError with the nearest size, or length, that does where it does not:
    better a line now than a process that is killed later."""
    made = plan(model, request, where)
    if made.fits:
        return made
    assert made.limit is not None
    stage = max(made.needed, key=lambda name: made.needed[name])
    told = f"needs about {made.peak / 1e9:.1f} GB of memory ({stage}) and {made.limit / 1e9:.1f} GB may be taken"
    nearest = [text for text in (_smaller(model, request, where), _shorter(model, request, where)) if text]
    if not nearest:
        raise UserError(f"--model {told}; no size fits, so free some memory or take a smaller model")
    what = f"--size {request.width}x{request.height}, {request.frames} frames"
    raise UserError(f"{what} {told}; the nearest valid value is {', or '.join(nearest)}")


def _smaller(model: Outline, request: Request, where: Setting) -> str | None:
    """The largest size of about these proportions that fits."""

    def scaled(share: int) -> Request:
        least = max(MIN_SIDE, request.grid.side)
        width, height = (
            max(least, int(side * share / 64) // least * least) for side in (request.width, request.height)
        )
        return replace(request, width=width, height=height)

    share = _most(lambda share: plan(model, scaled(share), where).fits, 63)
    return None if share is None else f"{scaled(share).width}x{scaled(share).height}"


def _shorter(model: Outline, request: Request, where: Setting) -> str | None:
    """The most frames that fit."""
    temporal = request.grid.temporal

    def cut_to(groups: int) -> Request:
        return replace(request, frames=temporal * (groups - 1) + 1)

    groups = _most(lambda groups: plan(model, cut_to(groups), where).fits, (request.frames - 2) // temporal + 1)
    return None if groups is None else f"--frames {cut_to(groups).frames}"


def _most(fits: Any, most: int) -> int | None:
    """The largest number from 1 to `most` that fits, if larger ones fit less; None where 1 does not."""
    if most < 1 or not fits(1):
        return None
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# ---- weights ---------------------------------------------------------------------------------------


def weights(model: Outline, where: Setting) -> float:
    """Bytes that stay on the device: of the transformers and the autoencoder in its type, on a CPU also of encoders."""
    width = torch.empty((), dtype=where.dtype).element_size()
    computed = [part for part in COMPUTED if part in model.loaded]
    moved = float(sum(width * model.parameters(part) for part in computed))
    return moved + (_encoders(model) if where.device.type == "cpu" else 0.0)


def _encoders(model: Outline) -> float:
    """Bytes of what stays with the machine on any device: encoders of text and pictures, and their package."""
    sizes = (size for part, size in model.loaded.items() if part not in (*COMPUTED, SECOND))
    return sum(sizes) + (TRANSFORMERS if model.foreign_text else 0)


def loading(model: Outline, where: Setting) -> dict[str, float]:
    """Peak bytes while the model is read, and while prompts are: of the machine's own memory."""
    host = where.held + WORKSPACE + (weights(model, where) if where.device.type == "cpu" else _encoders(model))
    lot = min(LOT, max(model.stored.values()))  # of files, beside what is made of them
    return {"load": host + lot, "text": host}


def _frames_held(request: Request, drawn: VideoShape) -> int:
    """Bytes of finished frames: those of the videos before, and of the last one twice while its pieces are joined."""
    return _pixels(drawn) * (request.num_videos + 1)


def _pixels(shape: VideoShape) -> int:
    return 3 * shape.frames * shape.height * shape.width
