"""The plan of a diffusion transformer's run: its fields, what they mean at a step, and which cannot be."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from worldline.data.fit import FitPlan
from worldline.data.packing import Cost
from worldline.dit.model import DiTConfig
from worldline.errors import UserError
from worldline.text import WordConfig
from worldline.train.plan import LoopPlan, OptimPlan, ParallelPlan
from worldline.train.precompute import ClipsPlan
from worldline.train.vae import DTYPES
from worldline.vae.model import VAEConfig


@dataclass(frozen=True)
class DiTPlan:
    """Everything about a DiT run. `vae` is the folder of a trained VAE or of the run that made it."""

    vae: str = ""
    data: str = ""  # folder of shards, or any dataset, instead of rendered worlds
    fit: FitPlan = field(default_factory=FitPlan)  # the shapes at which clips of a dataset are learned
    start: str = ""  # folder of a model whose weights the run begins with, by default none
    name: str = "dit"
    seed: int = 0
    config: DiTConfig = field(default_factory=DiTConfig)
    encoder: str = "words"  # words: a WordTransformer trained along; minilm: frozen, its package installed
    text: WordConfig = field(default_factory=lambda: WordConfig(words=()))  # words and width are filled in
    clips: ClipsPlan = field(default_factory=lambda: ClipsPlan(count=65_536))
    shapes: tuple[
        str, ...
    ] = ()  # more than that of `clips`: "96x64x17"; 9 latent frames of up to 961: "64x64x961/9"; cut: "64x64x17@96x64";
    # of things that are pushed about: "64x64x961/9+pushes"
    shares: tuple[float, ...] = (1.0,)  # of the samples: of `clips`, then of each of `shapes`
    shape_clips: tuple[int, ...] = (8192,)  # clips of each of `shapes`, or of all of them
    frames: str = ""  # folder of clips that a VAE run rendered, used where they fit instead of rendering again
    latents: str = ""  # folder of the latent cache; `latents` in the run's folder unless given
    whitening_power: float = 0.5  # 1 gives every channel unit variance; below, channels that show more lead
    batch: int = 32  # clips of a step; of other sizes as many as have the same number of tokens
    shift: float = 3.0  # of the timesteps towards noise, in training and sampling
    base_tokens: int = 0  # a sample of so many tokens is shifted by `shift`, a larger one more; 0: all alike
    phases: tuple[int, ...] = (0,)  # steps at which the next of several values of the fields `PHASED` begins to hold
    time_mean: tuple[float, ...] = (0.0,)  # of the logit-normal before the shift: above 0 motion and layout learn more
    several: tuple[float, ...] = (1.0,)  # how often scenes of several things are drawn for one of a lone thing
    crossing: tuple[float, ...] = (1.0,)  # how much more often still those in which one thing passes another
    nothing_known: tuple[float, ...] = (0.7,)  # share of samples without known latents
    images: tuple[float, ...] = (0.05,)  # share of steps that show single frames only
    plain: tuple[float, ...] = (0.0,)  # share of steps that show the first shape only
    guidance_scale: float = 2.5  # with the next, the model's defaults when it generates
    sampling_steps: int = 20
    drop_text: float = 0.1  # share of samples that see the empty prompt, for classifier-free guidance
    layout: float = 0.0  # weight of the lesson in `train.layout`
    styles: tuple[float, ...] = (0.25, 0.55, 0.2)  # shares of short, paraphrased and dense captions
    validate_clips: int = 128
    dtype: str = "bfloat16"
    device: str = "cpu"
    optim: OptimPlan = field(default_factory=lambda: OptimPlan(lr=1.2e-3, warmup=200, ema=0.9995))
    loop: LoopPlan = field(default_factory=LoopPlan)
    parallel: ParallelPlan = field(default_factory=ParallelPlan)


PHASED = ("time_mean", "several", "crossing", "nothing_known", "images", "plain")


def phase_of(plan: DiTPlan, step: int) -> dict[str, float]:
    """The values of the fields `PHASED` at a step."""
    phase = bisect_right(plan.phases, step) - 1
    return {name: getattr(plan, name)[phase if len(getattr(plan, name)) > 1 else 0] for name in PHASED}


def shapes_of(plan: DiTPlan) -> dict[str, ClipsPlan]:
    """The clips of each of `plan.shapes`; raises UserError for a shape that cannot be read."""
    if len(plan.shape_clips) not in (1, len(plan.shapes)):
        raise UserError(f"shape_clips: {plan.shape_clips} must hold one value, or one for each of {plan.shapes}")
    plans = {}
    for number, shape in enumerate(plan.shapes, 1):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:/(\d+))?(?:@(\d+)x(\d+))?(?:\+pushes)?", shape)
        if match is None:
            raise UserError(f"shapes: {shape[:40]!r} is not WIDTHxHEIGHTxFRAMES; write 96x64x17, or 64x64x961/9")
        width, height, frames, groups, *rendered = (int(value or 0) for value in match.groups())
        crop = (width, height) if any(rendered) else ()
        width, height = rendered if crop else (width, height)
        if crop and (crop[0] > width or crop[1] > height):
            raise UserError(f"shapes: {shape[:40]!r} cuts more than there is; render at least {crop[0]}x{crop[1]}")
        seed = plan.clips.seed + SEED_STEP * number  # other scenes than those of the other shapes
        count = plan.shape_clips[number - 1 if len(plan.shape_clips) > 1 else 0]
        clips = replace(plan.clips, count=count, seed=seed, frames=frames, groups=groups)
        plans[shape] = replace(clips, width=width, height=height, crop=crop, pushed=shape.endswith("pushes"))
    return plans


SEED_STEP = 1000
PUSHES = 2 * VAEConfig.temporal  # values that say how a thing is pushed during a latent frame


def plan_check(plan: DiTPlan) -> None:
    """Raises UserError for values that no run can have."""
    if plan.dtype not in DTYPES:
        raise UserError(f"dtype: '{plan.dtype}' is unknown; one of {', '.join(DTYPES)}")
    if plan.encoder not in ("words", "minilm"):
        raise UserError(f"encoder: '{plan.encoder}' is unknown; one of words, minilm")
    if plan.parallel.context > 1 and plan.config.factorised:
        raise UserError("parallel.context: factorised attention cannot share a sequence; use 1")
    if not plan.vae:
        raise UserError("vae: name the folder of a trained VAE, for example --set vae=runs/tiny-vae")
    if not plan.config.masks and (
        min(plan.nothing_known) < 1 or any(clips.groups for clips in shapes_of(plan).values())
    ):
        raise UserError("nothing_known: a model without masks cannot learn from what is known; use 1, and no excerpts")
    for name, value in (("batch", plan.batch), ("clips.count", plan.clips.count), ("loop.steps", plan.loop.steps)):
        if value < 1:
            raise UserError(f"{name}: {value} must be at least 1")
    if plan.data and plan.layout:
        raise UserError("layout: only rendered worlds know what lies where; use --set layout=0 with data")
    phases = plan.phases
    if phases[:1] != (0,) or list(phases) != sorted(phases):
        raise UserError(f"phases: {phases} must be steps that rise from 0")
    for name in PHASED:
        values = getattr(plan, name)
        if len(values) not in (1, len(phases)):
            raise UserError(f"{name}: {values} must hold one value, or one for each of phases={phases}")
    if plan.config.actions != PUSHES and any(clips.pushed for clips in shapes_of(plan).values()):
        raise UserError(f"config.actions: {plan.config.actions} are no pushes of a latent frame; use {PUSHES}")
    if len(plan.shares) != 1 + len(shapes_of(plan)) or min(plan.shares) < 0 or plan.shares[0] <= 0:
        raise UserError(f"shares: {plan.shares} must be one for `clips`, above 0, and one for each of {plan.shapes}")
    if len(plan.styles) != 3 or min(plan.styles) < 0 or sum(plan.styles) <= 0:
        raise UserError(f"styles: {plan.styles} must be three shares, for example 0.25,0.55,0.2")


def latent_of(plan: DiTPlan) -> tuple[int, int, int]:
    """Latent frames, height and width of `plan.clips`."""
    c, codec = plan.clips, VAEConfig()
    return -(-(c.frames - 1) // codec.temporal) + 1, -(-c.height // codec.spatial), -(-c.width // codec.spatial)


def tokens_of(plan: DiTPlan) -> int:
    """Tokens of one of `plan.clips`."""
    return math.prod(-(-size // patch) for size, patch in zip(latent_of(plan), plan.config.patch, strict=True))


def cost_of(plan: DiTPlan) -> Cost:
    """Operations of the transformer on a sample of N tokens, as a N + b N^2."""
    width, layers = plan.config.width, plan.config.depth
    return Cost(layers * 2.0 * 12 * width**2, layers * 4.0 * width)
