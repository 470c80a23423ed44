"""Exponential moving average of the fp32 master weights: the weights that are sampled, scored and shipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldline.train.optim import AdamW


class EMA:
    """Average with warm-up: after update n the decay is min(decay, (1 + n) / (10 + n)), so early weights fade fast."""

    def __init__(self, optimizer: AdamW, decay: float) -> None:
        self.decay = decay
        self.groups = optimizer.groups
        self.flats = [group.master.clone() for group in self.groups]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves the average towards the masters after update number `updates` (1-based)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for flat, group in zip(self.flats, self.groups, strict=True):
            flat.lerp_(group.master, 1.0 - decay)

    def weights(self) -> dict[str, Tensor]:
        """Averaged fp32 weights by parameter name, as views: copying into them restores the average."""
        tensors: dict[str, Tensor] = {}
        for flat, group in zip(self.flats, self.groups, strict=True):
            tensors |= dict(zip(group.names, group.views(flat), strict=True))
        return tensors

    @torch.no_grad()
    def copy_to(self, model: nn.Module, source: nn.Module) -> None:
        """Writes the average into `model` (any dtype), and the buffers of `source` beside it."""
        weights = self.weights()
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
        for target, buffer in zip(model.buffers(), source.buffers(), strict=True):
            target.copy_(buffer)
