"""The recipe of the shipped model, worldline-tiny: 17 frames of 64x64 from nothing, on two CPU cores.

worldline train vae --recipe tiny
worldline train dit --recipe tiny
"""

from __future__ import annotations

from worldline.train.dit import DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan
from worldline.train.vae import VAEPlan


def vae() -> VAEPlan:
    """The video VAE (4x8x8, 16 channels) on 12 000 world clips."""
    return VAEPlan(
        name="tiny-vae",
        clips=ClipsPlan(count=12_288),
        batch=8,
        optim=OptimPlan(lr=1.5e-3, warmup=100, weight_decay=0.0, ema=0.999),
        loop=LoopPlan(steps=24_000, checkpoint_every=500, validate_every=1000, sample_every=2000),
    )


def dit() -> DiTPlan:
    """The diffusion transformer (256 wide, 6 layers) with its word encoder on 65 536 world clips' latents."""
    return DiTPlan(
        name="tiny-dit",
        vae="runs/tiny-vae",
        clips=ClipsPlan(count=65_536, workers=2),
        batch=32,
        optim=OptimPlan(lr=1.2e-3, warmup=300, weight_decay=0.01, ema=0.9995),
        loop=LoopPlan(steps=30_000, checkpoint_every=500, validate_every=1000, sample_every=2000, score_every=4000),
    )
