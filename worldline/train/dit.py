"""Trains the diffusion transformer and its text encoder together on cached latents of world clips."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldline.checkpoints.folder import Parts, SchedulerConfig, load_parts, same_encoder, save_pretrained
from worldline.data.fit import FitPlan
from worldline.data.packing import Cost, balanced
from worldline.diffusion.path import RectifiedFlow, add_noise, target
from worldline.diffusion.timesteps import logit_normal, shift, unshift
from worldline.dit.conditions import (
    driven,
    frames_to_tokens,
    per_channel,
    place_known,
    random_mask,
    random_start,
)
from worldline.dit.model import DiT, DiTConfig
from worldline.dit.patchify import grid, pack
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.parallel.mesh import Crew, join
from worldline.text import CachedText, MiniLM, WordConfig, WordTransformer
from worldline.train.layout import LayoutHead, layout_loss
from worldline.train.loop import Callback, Outcome, Pack, Task, matmul_peak
from worldline.train.loop import train as run_task
from worldline.train.plan import LoopPlan, OptimPlan, ParallelPlan, numpy_rng, torch_rng
from worldline.train.precompute import ClipsPlan, Excerpt, Latents, cache_latents, held_out
from worldline.train.vae import DTYPES, hooks_of
from worldline.train.vae import load as load_vae
from worldline.vae.latents import Whitening, pixel_importance
from worldline.vae.model import VAEConfig, VideoVAE
from worldline.worlds.captions import caption, vocabulary
from worldline.worlds.scene import Scene, pushes_of
from worldline.worlds.synonyms import synonyms

TIMES = (0.2, 0.4, 0.6, 0.8, 0.95)  # of validation
FLOW = RectifiedFlow()


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


class TextToVideo(nn.Module):
    """The networks that learn together: the velocity's gradient reaches the text encoder, unless that is frozen."""

    def __init__(self, dit: DiT, text: WordTransformer | CachedText) -> None:
        super().__init__()
        self.dit = dit
        self.text = text
        self.layout = LayoutHead(dit.config.width, dit.config.cells)

    def forward(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Velocity (N, D) of the batch's tokens, and logits of their layout where the batch teaches it."""
        if isinstance(self.text, WordTransformer):
            states = self.text(self.text.tokens(batch.prompts), batch.words)
        else:
            states = self.text.encode(batch.prompts)
        on = batch.to(device)
        trace: list[Tensor] | None = [] if batch.lesson else None
        tokens = on.noisy, on.coords, on.cu_seqlens, on.timestep
        told = Told(states.states, states.cu_seqlens)
        velocity = self.dit(*tokens, told, on.known, on.mask, trace, on.actions)
        return velocity, self.layout(trace[len(trace) // 2]) if trace else None


@dataclass(frozen=True)
class Batch:
    """Tokens of all samples of a step, as the model and the loss need them."""

    noisy: Tensor  # (N, D), known cells clean
    target: Tensor  # (N, D) velocity
    coords: Tensor  # (N, 3)
    cu_seqlens: Tensor  # (B+1,)
    timestep: Tensor  # (N,)
    known: Tensor  # (N, D)
    mask: Tensor  # (N, P)
    prompts: list[str]
    words: torch.Generator  # which words the text encoder drops
    actions: Tensor | None = None  # (N, A + 1), zero for worlds that run by themselves
    layout: Tensor | None = None  # (N, 12 * P) in 0..1
    lesson: float = 0.0  # weight of the layout in the loss

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        if device.type == "cpu":
            return self
        return Batch(
            noisy=self.noisy.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
            coords=self.coords.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            timestep=self.timestep.to(device, non_blocking=True),
            known=self.known.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            prompts=self.prompts,
            words=self.words,
            actions=None if self.actions is None else self.actions.to(device, non_blocking=True),
            layout=None if self.layout is None else self.layout.to(device, non_blocking=True),
            lesson=self.lesson,
        )


@dataclass(frozen=True)
class Sample:
    """Whitened latents `clean` (C, T, H, W), where they are known (1, T, H, W), which latent frames they are, and what
    drives the world during them, as in `Conditions`."""

    clean: Tensor
    mask: Tensor
    frames: Sequence[int]
    actions: Tensor | None = None


def assemble(
    plan: DiTPlan, samples: Sequence[Sample], times: Tensor, prompts: list[str], noise: torch.Generator
) -> Batch:
    """Noises samples of any sizes at times (B,) before the shift, with what is known in place."""
    patch = plan.config.patch
    clean = pack([sample.clean for sample in samples], patch, [sample.frames for sample in samples])
    known = pack([sample.clean * sample.mask for sample in samples], patch).tokens  # (N, D)
    cells = pack([sample.mask for sample in samples], patch).tokens  # (N, P)
    lengths = clean.cu_seqlens.diff()
    shifts = [SchedulerConfig(shift=plan.shift, base_tokens=plan.base_tokens).shift_at(n) for n in lengths.tolist()]
    times = shift(times, torch.tensor(shifts))
    times = times.repeat_interleave(lengths)  # (N,)
    eps = torch.randn(clean.tokens.shape, generator=noise)
    noisy, timestep = place_known(add_noise(FLOW, clean.tokens, eps, times), times, known, cells)
    velocity = target(FLOW, "velocity", clean.tokens, eps, times)
    actions = actions_of_samples(plan, samples)
    return Batch(noisy, velocity, clean.coords, clean.cu_seqlens, timestep, known, cells, prompts, noise, actions)


def actions_of_samples(plan: DiTPlan, samples: Sequence[Sample]) -> Tensor | None:
    """(N, A + 1), zero for the samples that nothing drives; None where that is all of them."""
    if all(sample.actions is None for sample in samples):
        return None
    rows = []
    for sample in samples:
        acting = torch.zeros(len(sample.frames), plan.config.actions + 1) if sample.actions is None else sample.actions
        rows.append(frames_to_tokens(acting, sample.mask.shape, plan.config.patch))
    return torch.cat(rows)


def make_batch(plan: DiTPlan, caches: Sequence[Latents], whitening: Whitening, step: int, number: int = 0) -> Pack:
    """A pack of a step: clips, captions, times, noise and masks all follow from (plan.seed, step, number)."""
    rng = numpy_rng(plan.seed, step, "dit-batch")
    now = phase_of(plan, step)
    image = rng.random() < now["images"]
    picks = choose(rng, plan, caches, image, now)
    cost = cost_of(plan)
    sizes = [math.prod(grid(cache.values.shape, plan.config.patch)) for cache, _ in picks]
    own = balanced(cost.of(np.array(sizes)).tolist(), plan.parallel.packs)[number]
    # A step of fewer samples than packs has packs that count for nothing.
    picks, counts = [picks[i] for i in own or [0]], float(bool(own))
    use = f"dit-pack-{number}"
    rng, noise = numpy_rng(plan.seed, step, use), torch_rng(plan.seed, step, use)
    rows: list[tuple[Sample, str, Tensor, str]] = []
    for cache, row in picks:
        # The first latent frame holds the first frame alone: it is that image's latent.
        part = slice(0, 1) if image else stretch_of(rng, cache.excerpts[row])
        times = cache.excerpts[row].times[part]
        clean = whitening.forward(torch.from_numpy(cache.values.row(row)[:, part].astype(np.float32)))
        free = image or Excerpt(cache.excerpts[row].total, times).whole
        pushes = Scene.from_json(cache.scenes[row]).pushes
        if pushes:  # a world is driven from where it stands
            mask, acting = random_start(rng, clean.shape), driven(torch.from_numpy(pushes_of(pushes)), times)
        else:
            mask, acting = random_mask(rng, clean.shape, now["nothing_known"], free), None
        layout = torch.from_numpy(cache.layouts.row(row)[:, part].copy())
        name = f"{'x'.join(map(str, cache.values.shape))}/{row}"
        rows.append((Sample(clean, mask, times, acting), prompt_of(plan, cache.scenes[row], rng), layout, name))
    rows.sort(key=lambda row: row[0].clean.shape)  # samples of one size side by side are one batch of attention
    samples, prompts, layouts, names = map(list, zip(*rows, strict=True))
    batch = assemble(plan, samples, logit_normal(len(samples), noise, now["time_mean"]), prompts, noise)
    if plan.layout > 0:
        batch = replace(batch, layout=pack(layouts, plan.config.patch).tokens.float() / 255, lesson=plan.layout)
    return pack_of(batch, names, counts)


def pack_of(batch: Batch, names: Sequence[str], weight: float = 1.0) -> Pack:
    """A batch with what its two terms are means over: cells that are not known, and tokens."""
    unknown = float(batch.mask.numel() - batch.mask.sum())
    return Pack(batch, (weight * unknown, weight * len(batch.noisy)), tuple(names))


def cost_of(plan: DiTPlan) -> Cost:
    """Operations of the transformer on a sample of N tokens, as a N + b N^2."""
    width, layers = plan.config.width, plan.config.depth
    return Cost(layers * 2.0 * 12 * width**2, layers * 4.0 * width)


def stretch_of(rng: np.random.Generator, excerpt: Excerpt) -> slice:
    """All latent frames of a whole clip; of three in ten excerpts a shorter stretch, as the ends of a plan have it."""
    count = len(excerpt.times)
    if count == excerpt.total or count <= SHORTEST or rng.random() < 0.7:
        return slice(0, count)
    length = int(rng.integers(SHORTEST, count))
    start = int(rng.integers(count - length + 1))
    return slice(start, start + length)


SHORTEST = 3  # latent frames: one to paint between two


def choose(
    rng: np.random.Generator, plan: DiTPlan, caches: Sequence[Latents], image: bool, now: Mapping[str, float]
) -> list[tuple[Latents, int]]:
    """(cache, row) of every sample of a step: as many as hold no more tokens than `plan.batch` clips of the first
    cache. A step of images costs as much as one of clips."""
    caches = caches[:1] if rng.random() < now["plain"] else caches
    shapes = [cache.values.shape for cache in caches]  # (C, T', H', W')
    tokens = [math.prod(grid(shape, plan.config.patch)) for shape in shapes]
    sizes = [n // shape[1] if image else n for n, shape in zip(tokens, shapes, strict=True)]
    shares = np.array([share * (not image or cache.images) for share, cache in zip(plan.shares, caches, strict=False)])
    kinds: list[int] = []
    left = plan.batch * tokens[0]
    while left > 0:
        kind = int(rng.choice(len(caches), p=shares / shares.sum()))
        left -= sizes[kind]
        if left >= 0 or not kinds:
            kinds.append(kind)
    picks = []
    for kind in sorted(set(kinds)):
        rows = draw(rng, caches[kind], kinds.count(kind), now["several"], now["crossing"])
        picks += [(caches[kind], int(row)) for row in rows]
    return picks


def draw(rng: np.random.Generator, latents: Latents, rows: int, several: float, crossing: float = 1.0) -> np.ndarray:
    """Numbers of `rows` clips; a clip of several things comes `several` times as often as one of a lone thing, and
    `crossing` times as often again where one passes another."""
    if several == crossing == 1.0:
        return rng.integers(len(latents.values), size=rows)
    weights = (np.where(latents.several, several, 1.0) * np.where(latents.crossing, crossing, 1.0)).cumsum()
    return np.searchsorted(weights, rng.random(rows) * weights[-1], side="right")


def prompt_of(plan: DiTPlan, scene: str, rng: np.random.Generator) -> str:
    """A caption of the scene in a drawn style, or the empty prompt."""
    if rng.random() < plan.drop_text:
        return ""
    style = rng.choice(("short", "paraphrase", "dense"), p=np.array(plan.styles) / sum(plan.styles))
    return caption(Scene.from_json(scene), rng, str(style))


def flow_terms(model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the velocity, a mean over the cells that are not known (Liu et al. 2022, eq. 1), and the weighed
    error of the layout, a mean over tokens: (2,)."""
    velocity, logits = model(batch, device)
    predicted = velocity.float()
    unknown = 1.0 - per_channel(batch.mask, predicted.shape[-1]).to(device)
    error = (predicted - batch.target.to(device)).square() * unknown
    flow = error.sum() / unknown.sum().clamp_min(1.0)
    if logits is None or batch.layout is None:
        return torch.stack([flow, torch.zeros_like(flow)]), {}
    layout = layout_loss(logits, batch.layout.to(device))
    return torch.stack([flow, batch.lesson * layout]), {"flow": flow.detach(), "layout": layout.detach()}


def flow_loss(model: nn.Module, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of `flow_terms`."""
    terms, measured = flow_terms(model, batch, device)
    return terms.sum(), measured


@torch.no_grad()
def validate(
    plan: DiTPlan, model: nn.Module, latents: Latents, whitening: Whitening, device: torch.device
) -> dict[str, float]:
    """Loss on unseen clips of the first shape at fixed times and noise, with short captions and nothing known."""
    losses = {}
    for number, time in enumerate(TIMES):
        rng, noise = numpy_rng(plan.seed, number, "dit-validation"), torch_rng(plan.seed, number, "dit-validation")
        total = 0.0
        for start in range(0, plan.validate_clips, plan.batch):
            index = np.arange(start, min(start + plan.batch, plan.validate_clips))
            clean = whitening.forward(torch.from_numpy(latents.values[index]).float())
            samples = [Sample(x, torch.zeros(1, *x.shape[1:]), range(x.shape[1])) for x in clean]
            prompts = [caption(Scene.from_json(latents.scenes[i]), rng, "short") for i in index]
            batch = assemble(plan, samples, unshift(torch.full((len(clean),), time), plan.shift), prompts, noise)
            total += float(flow_loss(model, batch, device)[0]) * len(index)
        losses[f"val_{time}"] = total / plan.validate_clips
    return {"val": sum(losses.values()) / len(losses), **losses}


def fit_whitening(plan: DiTPlan, vae: VideoVAE, latents: Latents, path: Path) -> Whitening:
    """The run's whitening, from some of its latents."""
    rows = np.linspace(0, len(latents.values) - 1, min(32, len(latents.values))).astype(int)

    def some() -> tuple[Tensor, Tensor, Tensor]:
        return torch.from_numpy(latents.values[rows]), latents.mean, latents.std

    return kept_whitening(plan, vae, some, path)


def kept_whitening(
    plan: DiTPlan, vae: VideoVAE, some: Callable[[], tuple[Tensor, Tensor, Tensor]], path: Path
) -> Whitening:
    """That of the model a run starts from, else fitted once and kept at `path`, so that a resumed run on other threads
    has the same bits. `some` gives latents (B, C, T, H, W), mean and deviation (C,)."""
    if plan.start:
        return load_parts(plan.start).whitening
    if path.exists():
        return Whitening.from_dict(json.loads(path.read_text()))
    latents, mean, std = some()
    importance = pixel_importance(vae, latents.to(next(vae.parameters()))).cpu()
    whitening = Whitening.fit(mean, std, importance, plan.whitening_power)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(whitening.to_dict()))
    os.replace(temporary, path)
    return whitening


def build(plan: DiTPlan) -> TextToVideo:
    """The untrained networks, seeded."""
    torch.manual_seed(plan.seed)
    if plan.encoder == "minilm":
        frozen = CachedText(MiniLM())
        return TextToVideo(DiT(replace(plan.config, text_width=frozen.width)), frozen)
    known = vocabulary()
    words = replace(plan.text, words=tuple(known), readings=synonyms(known), width=plan.config.text_width)
    return TextToVideo(DiT(plan.config), WordTransformer(words))


def begin(model: TextToVideo, start: Parts, vae: VideoVAE) -> None:
    """Copies the weights of `start` into networks that may have more (actions, the lesson's head).

    Raises UserError for a model of another VAE or of other shapes.
    """
    if not same_encoder(start.vae, vae):
        raise UserError("start: the model knows the latents of another VAE than `vae`; name the VAE in its folder")
    for name in ("dit", "text"):
        part, own = getattr(start, name), getattr(model, name)
        weights = part.state_dict() if isinstance(part, nn.Module) else {}
        found = own.state_dict() if isinstance(own, nn.Module) else {}
        wrong = [key for key, value in weights.items() if key not in found or found[key].shape != value.shape]
        wrong += [key for key in found if key not in weights and not key.startswith("actions.")]
        if wrong:
            raise UserError(f"start: its {name} is of another shape than the plan's: {', '.join(sorted(wrong)[:4])}")
        if weights:
            own.load_state_dict(weights, strict=False)


def parts(plan: DiTPlan, model: TextToVideo, vae: VideoVAE, whitening: Whitening) -> Parts:
    """A copy of the networks in fp32 with all that a pipeline needs beside them."""
    whole = copy.deepcopy(model).float().cpu().eval()
    shape = plan.clips
    defaults = {"width": shape.width, "height": shape.height, "frames": shape.frames, "fps": shape.fps}
    defaults |= {"guidance_scale": plan.guidance_scale, "steps": plan.sampling_steps}
    window = max((clips.groups for clips in shapes_of(plan).values()), default=0)
    if window:
        defaults["window"] = window  # latent frames painted at once; what is longer is made in pieces
    scheduler = SchedulerConfig(shift=plan.shift, base_tokens=plan.base_tokens)
    return Parts(vae.cpu(), whole.dit, whole.text, whitening, scheduler, defaults)


@dataclass(frozen=True)
class Feed:
    """What a run learns from: the packs of a step, what it is validated on, and tokens of a usual sample."""

    pack: Callable[[TextToVideo, int, int], Pack]
    validate: Callable[[nn.Module, torch.device], dict[str, float]] | None
    whitening: Whitening
    tokens: int


def world_feed(
    plan: DiTPlan, vae: VideoVAE, encoder: VideoVAE, mark: str, out: Path, say: Callable[[str], None]
) -> Feed:
    """Latents of rendered worlds, cached first in `out/latents` or `plan.latents`."""
    folder = Path(plan.latents) if plan.latents else out / "latents"
    frames = Path(plan.frames) if plan.frames else None
    caches = [cache_latents(plan.clips, encoder, mark, folder / "train", frames, say)]
    for shape, clips in shapes_of(plan).items():
        caches.append(cache_latents(clips, encoder, mark, folder / f"train-{shape.replace('/', '-')}", None, say))
    unseen = held_out(plan.clips, plan.validate_clips)
    unseen_latents = cache_latents(unseen, encoder, mark, folder / "validation", None, say)
    whitening = fit_whitening(plan, vae, caches[0], out / "whitening.json")
    return Feed(
        pack=lambda model, step, number: make_batch(plan, caches, whitening, step, number),
        validate=lambda model, device: validate(plan, model, unseen_latents, whitening, device),
        whitening=whitening,
        tokens=math.prod(grid(caches[0].values.shape, plan.config.patch)),
    )


def feed_of(plan: DiTPlan, vae: VideoVAE, device: torch.device, out: Path, say: Callable[[str], None]) -> Feed:
    """What a plan's run learns from: clips of its dataset, or rendered worlds."""
    mark = vae_hash(vae)
    encoder = copy.deepcopy(vae).to(device, DTYPES[plan.dtype])  # bf16: three times as fast, 0.4 % of the spread off
    if not plan.data:
        return world_feed(plan, vae, encoder, mark, out, say)
    from worldline.train.clips import clip_feed

    return clip_feed(plan, vae, encoder, mark, out)


def task_of(plan: DiTPlan, model: TextToVideo, feed: Feed, crew: Crew) -> Task:
    """The task of training `model`, which is on the crew's device."""
    device = crew.device
    return Task(
        model=model,
        pack=lambda step, number: feed.pack(model, step, number),
        loss=lambda module, batch: flow_terms(module, batch, device),
        samples=plan.batch,
        dtype=DTYPES[plan.dtype],
        validate=feed.validate and (lambda averaged: feed.validate(averaged, device)),
        gflop=3 * plan.batch * model.dit.flops(feed.tokens, TEXT_TOKENS) / 1e9,
        peak=crew.size * matmul_peak(device, DTYPES[plan.dtype]),
        sequence=(model.dit, plan.config.heads),
        tokens=lambda batch: len(batch.noisy),
    )


def train(
    plan: DiTPlan,
    out: str | Path,
    resume: bool = False,
    callbacks: Mapping[str, Callable[[int, Parts, Path], Mapping[str, float] | None]] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Trains and exports `out/model`, a whole model folder. Callbacks "sample" and "score" get (step, Parts, folder).

    Latents are cached first, in `out/latents` or `plan.latents`. Raises UserError for a plan that cannot run.
    """
    out = Path(out)
    plan_check(plan)
    crew = join(plan.parallel, plan.device)
    device = crew.device
    vae = load_vae(plan.vae)
    with crew.first_alone():
        feed = feed_of(plan, vae, device, out, say)
    whitening = feed.whitening
    model = build(plan)
    if plan.start:
        begin(model, load_parts(plan.start), vae)
    model.to(device)

    def wrapped(call: Callable[[int, Parts, Path], Mapping[str, float] | None]) -> Callback:
        return lambda step, averaged, where: call(step, parts(plan, averaged, vae, whitening), where)  # type: ignore[arg-type]

    task = task_of(plan, model, feed, crew)
    hooks = hooks_of(plan.loop, {name: wrapped(call) for name, call in (callbacks or {}).items()})
    outcome = run_task(task, plan, out, resume, hooks)
    if not crew.first:
        return outcome
    final = build(plan)
    final.load_state_dict(outcome.weights)
    save_pretrained(parts(plan, final, vae, whitening), out / "model", overwrite=True)
    return outcome


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
TEXT_TOKENS = 12  # a caption's usual length, for the count of operations


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


def vae_hash(vae: VideoVAE) -> str:
    """A short name of the VAE's weights, under which latents are cached."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def latent_of(plan: DiTPlan) -> tuple[int, int, int]:
    """Latent frames, height and width of `plan.clips`."""
    c, codec = plan.clips, VAEConfig()
    return -(-(c.frames - 1) // codec.temporal) + 1, -(-c.height // codec.spatial), -(-c.width // codec.spatial)


def tokens_of(plan: DiTPlan) -> int:
    """Tokens of one of `plan.clips`."""
    return math.prod(-(-size // patch) for size, patch in zip(latent_of(plan), plan.config.patch, strict=True))
