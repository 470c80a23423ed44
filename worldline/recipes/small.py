"""The worlds again, at the width that one GPU wants: 12 layers of 512, the autoencoder of `tiny`.

worldline train dit --recipe small --dry-run --gpus 1 --mfu 0.3
worldline train dit --recipe small --set device=cuda --set clips.device=cuda
"""

from __future__ import annotations

from dataclasses import replace

from worldline.dit.model import SMALL
from worldline.recipes import tiny
from worldline.train.dit_plan import DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.vae import VAEPlan


def vae() -> VAEPlan:
    """The autoencoder of `tiny`."""
    return tiny.vae()


def dit() -> DiTPlan:
    """`tiny` with eight times the parameters, four times the worlds and larger batches from the start."""
    plan = tiny.dit()
    return replace(
        plan,
        name="small-dit",
        config=SMALL,
        clips=replace(plan.clips, count=131_072),
        shape_clips=(49_152,),
        batch=96,
        phases=(0, 10_000, 25_000),
        time_mean=(0.0, 0.4, 0.0),
        several=(1.0, 2.0, 2.0),
        crossing=(1.0, 1.0, 5.0),
        nothing_known=(0.85, 0.85, 0.6),
        images=(0.15, 0.15, 0.12),
        plain=(1.0, 0.5, 0.0),
        optim=OptimPlan(lr=7e-4, warmup=1000, ema=0.9995, schedule="trapezoid"),
        loop=LoopPlan(steps=60_000, checkpoint_every=1000, validate_every=5000, sample_every=5000, score_every=5000),
    )
