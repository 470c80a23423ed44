"""11 billion parameters: the stages of `xl` in larger batches.

worldline train dit --recipe xxl --dry-run --gpus 1024 --mfu 0.45 --price 2.5 --context 2
"""

from __future__ import annotations

from dataclasses import replace

from worldline.dit.model import XXL
from worldline.recipes import xl
from worldline.train.dit_plan import DiTPlan
from worldline.train.vae import VAEPlan


def vae() -> VAEPlan:
    """The autoencoder of `base`."""
    return xl.vae()


def dit() -> tuple[DiTPlan, ...]:
    """The stages of `xl`, four times the samples a step, at half the rates."""
    return tuple(
        replace(stage, config=XXL, batch=4 * stage.batch, optim=replace(stage.optim, lr=stage.optim.lr / 2))
        for stage in xl.dit()
    )
