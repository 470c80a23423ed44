"""A ladder of five small DiTs on the worlds, the largest foretold from the other four before it is trained.

worldline scaling --dry-run
worldline scaling
"""

from __future__ import annotations

from dataclasses import replace

from worldline.checkpoints import layout
from worldline.train.scaling import ScalingPlan


def scaling() -> ScalingPlan:
    """On the latents of the shipped model's autoencoder."""
    plan = ScalingPlan()
    return replace(plan, base=replace(plan.base, vae=str(layout.check(None))))
