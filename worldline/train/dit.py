"""Trains the diffusion transformer and its text encoder together, on rendered worlds or on clips of a dataset."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from worldline.checkpoints.folder import Parts, SchedulerConfig, load_parts, same_encoder, save_pretrained
from worldline.dit.model import DiT
from worldline.errors import UserError
from worldline.parallel.mesh import Crew, join
from worldline.text import CachedText, MiniLM, WordTransformer
from worldline.train.clips import clip_feed
from worldline.train.dit_plan import DiTPlan, plan_check, shapes_of
from worldline.train.feed import Feed
from worldline.train.flow import TextToVideo, flow_terms
from worldline.train.loop import Callback, Outcome, Task, matmul_peak
from worldline.train.loop import train as run_task
from worldline.train.vae import DTYPES, hooks_of, vae_hash
from worldline.train.vae import load as load_vae
from worldline.train.worlds import world_feed
from worldline.vae.latents import Whitening
from worldline.vae.model import VideoVAE
from worldline.worlds.captions import vocabulary
from worldline.worlds.synonyms import synonyms

TEXT_TOKENS = 12  # a caption's usual length, for the count of operations


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


def feed_of(plan: DiTPlan, vae: VideoVAE, device: torch.device, out: Path, say: Callable[[str], None]) -> Feed:
    """What a plan's run learns from: clips of its dataset, or rendered worlds."""
    mark = vae_hash(vae)
    encoder = copy.deepcopy(vae).to(device, DTYPES[plan.dtype])  # bf16: three times as fast, 0.4 % of the spread off
    if not plan.data:
        return world_feed(plan, vae, encoder, mark, out, say)
    return clip_feed(plan, vae, encoder, mark, out)


def task_of(plan: DiTPlan, model: TextToVideo, feed: Feed, crew: Crew) -> Task:
    """The task of training `model`, which is on the crew's device."""
    device = crew.device
    return Task(
        model=model,
        pack=feed.pack,
        loss=lambda module, batch: flow_terms(module, batch, device),
        samples=plan.batch,
        dtype=DTYPES[plan.dtype],
        validate=feed.validate and (lambda averaged: feed.validate(averaged, device)),
        gflop=3 * plan.batch * model.dit.flops(feed.tokens, TEXT_TOKENS) / 1e9,
        peak=crew.size * matmul_peak(device, DTYPES[plan.dtype]),
        sequence=(model.dit, plan.config.heads),
        tokens=lambda batch: len(batch.noisy),
    )


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
