"""Exponential moving average of the fp32 master weights: the weights that are sampled, scored and shipped."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.train.optim import Optimizer


class EMA:
    """Average with warm-up: after update n the decay is min(decay, (1 + n) / (10 + n)), so early weights fade fast.

    `weights`: what this process holds of the average, by name.
    """

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.decay = decay
        self.masters = [master.detach() for master in optimizer.masters.values()]
        copies = [master.clone() for master in self.masters]
        self.weights: dict[str, Tensor] = dict(zip(optimizer.masters, copies, strict=True))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Moves the average towards the masters after update number `updates` (1-based)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.weights.values()), self.masters, 1.0 - decay)
