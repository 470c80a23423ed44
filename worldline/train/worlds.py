"""Trains the diffusion transformer on rendered worlds: cached latents, captions drawn anew, known parts, layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldline.data.packing import balanced
from worldline.diffusion.timesteps import logit_normal, unshift
from worldline.dit.conditions import driven, random_mask, random_start
from worldline.dit.patchify import grid, pack
from worldline.train.dit_plan import DiTPlan, cost_of, phase_of, shapes_of
from worldline.train.feed import TIMES, Feed, kept_whitening
from worldline.train.flow import Sample, assemble, flow_loss, pack_of
from worldline.train.loop import Pack
from worldline.train.plan import numpy_rng, torch_rng
from worldline.train.precompute import Excerpt, Latents, cache_latents, held_out
from worldline.vae.latents import Whitening
from worldline.vae.model import VideoVAE
from worldline.worlds.captions import caption
from worldline.worlds.scene import Scene, pushes_of


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
        pack=lambda step, number: make_batch(plan, caches, whitening, step, number),
        validate=lambda model, device: validate(plan, model, unseen_latents, whitening, device),
        whitening=whitening,
        tokens=math.prod(grid(caches[0].values.shape, plan.config.patch)),
    )


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
