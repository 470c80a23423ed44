"""A cluster's first model, 0.3 billion parameters on footage of one's own, in four stages of growing pictures.

worldline train dit --recipe base --dry-run --gpus 64 --mfu 0.4 --price 2.5
worldline shards DATASET --recipe base --stage images --out shards/images        and so on for each stage
worldline train dit --recipe base                                                all stages, one after another
worldline train dit --recipe base --stage short                                  one of them

Every stage takes pictures and clips together (`min_frames` is 1: a picture is a clip of one frame), each in its own
shape and length, with masks among them.
"""

from __future__ import annotations

from dataclasses import replace

from worldline.data.fit import FitPlan
from worldline.dit.model import BASE
from worldline.recipes import tiny
from worldline.train.dit_plan import DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan
from worldline.train.vae import VAEPlan
from worldline.vae.model import VAEConfig

FPS = 16.0


def vae() -> VAEPlan:
    """The autoencoder of `tiny`, wider, on crops of 128 pixels, sharpened by a discriminator over its last part."""
    plan = tiny.vae()
    return replace(
        plan,
        name="base-vae",
        config=VAEConfig(widths=(512, 384, 192), encoder_blocks=(3, 2), decoder_blocks=(3, 5, 2)),
        clips=ClipsPlan(count=32_768, height=128, width=128),
        real_fraction=0.75,
        batch=64,
        lengths=(17, 17, 9, 1, 1),
        structure=0.1,
        adversarial=0.5,
        adversarial_from=0.6,
        optim=OptimPlan(lr=4e-4, warmup=1000, weight_decay=0.0, ema=0.9995),
        loop=LoopPlan(steps=200_000, checkpoint_every=2000, validate_every=5000, sample_every=5000),
    )


def dit() -> tuple[DiTPlan, ...]:
    """Pictures of 256x256; then clips of a second; sides of 480; and at last five seconds."""
    pictures = DiTPlan(
        name="images",
        vae="runs/base-vae",
        data="shards/images",
        fit=FitPlan(pixels=256 * 256, max_frames=1, fps=FPS),
        config=BASE,
        encoder="minilm",
        batch=2048,
        base_tokens=1024,  # a picture of 256 tokens is shifted by 1.5, five seconds at 480x832 by 17
        nothing_known=(0.9,),
        images=(0.0,),
        styles=(0.25, 0.25, 0.5),
        validate_clips=1024,
        optim=OptimPlan(lr=3e-4, warmup=2000, ema=0.9999, schedule="trapezoid"),
        loop=LoopPlan(steps=100_000, checkpoint_every=1000, validate_every=5000, sample_every=5000, score_every=0),
    )
    short = later(pictures, "short", fit(256 * 448, 33), batch=512, lr=2e-4, steps=60_000)
    sharp = later(short, "sharp", fit(480 * 832, 33), batch=128, lr=1e-4, steps=30_000)
    return pictures, short, sharp, later(sharp, "long", fit(480 * 832, 81), batch=64, lr=1e-4, steps=20_000)


def fit(pixels: int, frames: int) -> FitPlan:
    """Pictures and clips of up to so many frames, of any shape."""
    return FitPlan(pixels=pixels, max_frames=frames, min_frames=1, min_side=64, fps=FPS)


def later(plan: DiTPlan, name: str, fit: FitPlan, batch: int, lr: float, steps: int) -> DiTPlan:
    """The stage after `plan`: it begins with its weights, on larger or longer clips, more of them known in part."""
    return replace(
        plan,
        name=name,
        data=f"shards/{name}",
        fit=fit,
        seed=plan.seed + 1,  # other batches than those that it has seen
        batch=batch,
        nothing_known=(0.7,),
        images=(0.1,),
        optim=replace(plan.optim, lr=lr),
        loop=replace(plan.loop, steps=steps),
    )
