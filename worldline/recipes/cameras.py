"""The last stage of the shipped captioner: more looks at cameras that move, which they do in a twelfth of all scenes.

worldline train captioner --recipe cameras --set start=runs/captioner/captioner
"""

from __future__ import annotations

from dataclasses import replace

from worldline.recipes import tiny
from worldline.train.captioner import CaptionerPlan
from worldline.train.plan import LoopPlan, OptimPlan


def captioner() -> CaptionerPlan:
    """From the captioner of `tiny`, on 8192 other clips: in 40 % of them the camera moves."""
    plan = tiny.captioner()
    return replace(
        plan,
        name="captioner-cameras",
        start="runs/captioner/captioner",
        seed=1,  # other batches than those that it has seen
        clips=replace(plan.clips, count=6144, cameras=0.35),
        shape_clips=1024,
        optim=OptimPlan(lr=1e-3, warmup=100, ema=0.99, schedule="linear"),
        loop=LoopPlan(steps=680, validate_every=250, checkpoint_every=100),
    )
