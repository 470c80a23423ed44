"""What a diffusion transformer learns from, as its trainer sees it: packs of samples, and their whitening."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from worldline.checkpoints.folder import load_parts
from worldline.train.dit_plan import DiTPlan
from worldline.train.loop import Pack
from worldline.vae.latents import Whitening, pixel_importance
from worldline.vae.model import VideoVAE

TIMES = (0.2, 0.4, 0.6, 0.8, 0.95)  # of validation


@dataclass(frozen=True)
class Feed:
    """What a run learns from: the packs of a step, what it is validated on, and tokens of a usual sample."""

    pack: Callable[[int, int], Pack]
    validate: Callable[[nn.Module, torch.device], dict[str, float]] | None
    whitening: Whitening
    tokens: int


def kept_whitening(
    plan: DiTPlan, vae: VideoVAE, some: Callable[[], tuple[Tensor, Tensor, Tensor]], path: Path
) -> Whitening:
    """That of the model a run starts from, else fitted once and kept at `path`, so that a resumed run on other threads
    has the same bits. `some` gives latents (B, C, T, H, W), mean and deviation (C,)."""
    if plan.start:
        return load_parts(plan.start).whitening
    if path.exists():
        return Whitening.from_dict(json.loads(path.read_text()))
    latents, mean, std = some()
    importance = pixel_importance(vae, latents.to(next(vae.parameters()))).cpu()
    whitening = Whitening.fit(mean, std, importance, plan.whitening_power)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(whitening.to_dict()))
    os.replace(temporary, path)
    return whitening
