"""Trains the shipped model on clips of one's own: any dataset, or shards of it.

worldline doctor DATASET --recipe clips                        where every clip lands, or why not
worldline shards DATASET --recipe clips --out shards           latents once, instead of at every step
worldline train dit --recipe clips --set data=shards           or data=DATASET
"""

from __future__ import annotations

from dataclasses import replace

from worldline.checkpoints import layout
from worldline.data.fit import FitPlan
from worldline.recipes import driven
from worldline.train.dit_plan import DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan


def dit() -> DiTPlan:
    """From the shipped weights, at the shapes that the clips have."""
    plan = driven.dit()
    shipped = str(layout.check(None))
    return replace(
        plan,
        name="clips-dit",
        vae=shipped,
        start=shipped,
        data="shards",
        fit=FitPlan(),
        seed=2,
        shapes=(),
        shares=(1.0,),
        shape_clips=(0,),
        layout=0.0,
        batch=24,
        nothing_known=(0.6,),
        images=(0.0,),
        several=(1.0,),
        crossing=(1.0,),
        optim=OptimPlan(lr=3e-4, warmup=100, ema=0.995),
        loop=LoopPlan(steps=2000, checkpoint_every=250, validate_every=250, sample_every=1000),
    )
