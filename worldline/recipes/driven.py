"""The last stage of the shipped model: more aspect ratios, and worlds that are driven by pushes.

worldline train dit --recipe driven --set start=runs/tiny-dit/model
"""

from __future__ import annotations

from dataclasses import replace

from worldline.recipes import tiny
from worldline.train.dit_plan import PUSHES, DiTPlan
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.vae import VAEPlan


def vae() -> VAEPlan:
    """The autoencoder stays."""
    return tiny.vae()


def dit() -> DiTPlan:
    """The finished `tiny` learns at its full rate again, then at a falling one."""
    plan = tiny.dit()
    return replace(
        plan,
        name="driven-dit",
        start="runs/tiny-dit/model",
        seed=1,  # other batches than those that it has seen
        config=replace(plan.config, actions=PUSHES),
        shapes=(*plan.shapes, "64x80x17", "112x64x17", "64x64x961/9+pushes"),
        shares=(0.27, 0.14, 0.14, 0.17, 0.1, 0.06, 0.12),
        shape_clips=(12_288, 12_288, 12_288, 4096, 4096, 4096),
        phases=(0,),
        time_mean=(0.0,),
        several=(2.0,),
        crossing=(3.0,),
        nothing_known=(0.5,),
        images=(0.1,),
        plain=(0.0,),
        optim=OptimPlan(lr=1e-3, warmup=300, ema=0.999, schedule="trapezoid"),
        loop=LoopPlan(steps=7000, checkpoint_every=500, validate_every=1000, sample_every=4000, score_every=4000),
    )
