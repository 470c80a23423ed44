"""1.3 billion parameters: the stages of `base`, longer and at smaller rates.

worldline train dit --recipe xl --dry-run --gpus 256 --mfu 0.45 --price 2.5
"""

from __future__ import annotations

from dataclasses import replace

from worldline.dit.model import XL
from worldline.recipes import base
from worldline.train.dit_plan import DiTPlan
from worldline.train.vae import VAEPlan


def vae() -> VAEPlan:
    """The autoencoder of `base`."""
    return base.vae()


def dit() -> tuple[DiTPlan, ...]:
    """The stages of `base` with twice the steps at half the rates."""
    return tuple(
        replace(
            stage,
            config=XL,
            optim=replace(stage.optim, lr=stage.optim.lr / 2),
            loop=replace(stage.loop, steps=2 * stage.loop.steps),
        )
        for stage in base.dit()
    )
