"""The recipe of the shipped model, worldline-tiny: 17 frames of 64x64 from nothing, on two CPU cores.

    worldline train vae --recipe tiny --out runs/vae
    worldline train dit --recipe tiny --out runs/dit --set vae=runs/vae
"""

from __future__ import annotations

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
