"""Trains the diffusion transformer on a dataset instead of rendered worlds: on shards, or on clips as they lie."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldline.data.dataset import open_dataset
from worldline.data.loader import Drawn, Loader, RawClips, Source
from worldline.data.shards import INDEX, Row, Shards
from worldline.diffusion.timesteps import logit_normal, unshift
from worldline.dit.conditions import random_mask
from worldline.errors import UserError
from worldline.records import Example
from worldline.shapes import Grid
from worldline.text import MiniLM
from worldline.train.dit_plan import DiTPlan, cost_of, phase_of
from worldline.train.feed import TIMES, Feed, kept_whitening
from worldline.train.flow import Sample, assemble, flow_loss, pack_of
from worldline.train.loop import Pack
from worldline.train.plan import numpy_rng, torch_rng
from worldline.train.precompute import to_pixels
from worldline.train.shards import ShardsPlan, make_shards
from worldline.train.vae import DTYPES, vae_hash
from worldline.train.vae import load as load_vae
from worldline.vae.latents import Whitening
from worldline.vae.model import VideoVAE

UNSEEN = 50  # one source in so many is validated on


def clip_feed(plan: DiTPlan, vae: VideoVAE, encoder: VideoVAE, mark: str, out: Path) -> Feed:
    """The feed of `plan.data`. A step holds as many tokens as `plan.batch` samples of the usual length, or as its packs
    need for the longest sample."""
    source = source_of(plan, encoder, mark)
    train, unseen = split_of(source)
    usual = int(np.median(source.tokens[train]))
    packs = plan.parallel.packs
    budget = max(plan.batch * usual // packs, int(source.tokens.max()))
    loader = Loader(source, budget, plan.seed, packs, cost_of(plan), train)
    whitening = kept_whitening(plan, vae, lambda: _some(source, train), out / "whitening.json")
    held = Loader(source, budget, plan.seed, numbers=unseen[: plan.validate_clips]) if unseen else None

    def validate(model: nn.Module, device: torch.device) -> dict[str, float]:
        return validate_on(plan, model, held, whitening, device) if held else {}

    return Feed(
        pack=lambda step, number: clip_batch(plan, loader, whitening, step, number),
        validate=validate,
        whitening=whitening,
        tokens=usual,
    )


def source_of(plan: DiTPlan, encoder: VideoVAE, mark: str) -> Source:
    """The samples of `plan.data`: shards, which must be of this VAE, or clips that are encoded when they are drawn."""
    if "://" in plan.data or (Path(plan.data) / INDEX).is_file():
        shards = Shards(plan.data)
        if shards.plan.get("vae") != mark:
            raise UserError(f"data: {plan.data} holds latents of VAE {shards.plan.get('vae')}, not of {mark}")
        return shards
    examples = open_dataset(plan.data, lambda source, reason: None)

    def encode(frames: np.ndarray) -> np.ndarray:
        return _means(encoder, to_pixels(frames[None]))[0].to("cpu", torch.float16).numpy()

    return RawClips(examples, plan.fit, encode, Grid(patch=plan.config.patch))


def shards_of(
    examples: Sequence[Example],
    plan: DiTPlan,
    out: str,
    per_shard: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Writes the shards of a dataset for a plan: latents of its VAE, and text states where its encoder is frozen."""
    vae = load_vae(plan.vae)
    encoder = copy.deepcopy(vae).to(torch.device(plan.device), DTYPES[plan.dtype])
    text = MiniLM() if plan.encoder == "minilm" else None
    wanted = ShardsPlan(plan.fit, per_shard, vae_hash(vae), plan.encoder)
    grid = Grid(patch=plan.config.patch)
    return make_shards(examples, wanted, lambda pixels: _means(encoder, pixels), out, text, grid, progress)


@torch.no_grad()
def _means(encoder: VideoVAE, pixels: Tensor) -> Tensor:
    return encoder.encode(pixels.to(next(encoder.parameters()))).mean


def split_of(source: Source) -> tuple[list[int], list[int]]:
    """Numbers of the samples to train on, and of those to validate on; no file is on both sides."""
    unseen = [int(hashlib.sha256(name.encode()).hexdigest(), 16) % UNSEEN == 0 for name in source.sources]
    numbers = range(len(unseen))
    if all(unseen):
        return list(numbers), []
    return [n for n in numbers if not unseen[n]], [n for n in numbers if unseen[n]]


def clip_batch(plan: DiTPlan, loader: Loader, whitening: Whitening, step: int, number: int) -> Pack:
    """A pack of a step: times, noise, masks and dropped captions follow from (plan.seed, step, number)."""
    use = f"dit-pack-{number}"
    rng, noise = numpy_rng(plan.seed, step, use), torch_rng(plan.seed, step, use)
    now = phase_of(plan, step)
    rows: list[tuple[Sample, str, str]] = []
    drawn = loader.batch(step, number)
    for item in drawn:
        clean = _whitened(item, whitening)
        mask = random_mask(rng, clean.shape, now["nothing_known"], True)
        prompt = "" if rng.random() < plan.drop_text else item.text
        rows.append((Sample(clean, mask, range(clean.shape[1])), prompt, f"{plan.data}/{item.number}"))
    rows.sort(key=lambda row: row[0].clean.shape)  # samples of one size side by side are one batch of attention
    samples, prompts, names = map(list, zip(*rows, strict=True))
    batch = assemble(plan, samples, logit_normal(len(rows), noise, now["time_mean"]), prompts, noise)
    return pack_of(replace(batch, states=_states(drawn)), names)


@torch.no_grad()
def validate_on(
    plan: DiTPlan, model: nn.Module, held: Loader, whitening: Whitening, device: torch.device
) -> dict[str, float]:
    """Loss on clips of files that training never sees, at fixed times and noise, with nothing known."""
    losses = {}
    steps = len(held.packer.steps(0))
    for number, time in enumerate(TIMES):
        noise = torch_rng(plan.seed, number, "dit-validation")
        total, count = 0.0, 0
        for step in range(steps):
            drawn = sorted(held.batch(step), key=lambda item: item.latents.shape)
            clean = [_whitened(item, whitening) for item in drawn]
            samples = [Sample(x, torch.zeros(1, *x.shape[1:]), range(x.shape[1])) for x in clean]
            times = unshift(torch.full((len(samples),), time), plan.shift)
            batch = assemble(plan, samples, times, [item.text for item in drawn], noise)
            total += float(flow_loss(model, replace(batch, states=_states(drawn)), device)[0]) * len(samples)
            count += len(samples)
        losses[f"val_{time}"] = total / count
    return {"val": sum(losses.values()) / len(losses), **losses}


def _whitened(item: Drawn, whitening: Whitening) -> Tensor:
    return whitening.forward(torch.from_numpy(item.latents.astype(np.float32)))


def _states(drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    """Text states that the shards hold, so that they are not made again."""
    held = {item.text: item.states for item in drawn if item.text and item.states is not None}
    return {text: torch.from_numpy(states.astype(np.float32)) for text, states in held.items()}


def _some(source: Source, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the commonest shape (B, C, T, H, W), and mean and deviation per channel of a few hundred samples."""
    chosen = [numbers[i] for i in np.linspace(0, len(numbers) - 1, min(256, len(numbers))).astype(int)]
    latents = [torch.from_numpy(source.latents(number).astype(np.float32)) for number in chosen]
    every = torch.cat([x.flatten(1) for x in latents], 1).double()
    shape = Counter(x.shape for x in latents).most_common(1)[0][0]
    alike = torch.stack([x for x in latents if x.shape == shape][:32])
    return alike, every.mean(1).float(), every.std(1, correction=0).clamp_min(1e-6).float()
