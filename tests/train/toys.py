"""A toy run that the tests of the loop share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from worldline.train.loop import Pack, Task
from worldline.train.plan import LoopPlan, OptimPlan, ParallelPlan, torch_rng


@dataclass(frozen=True)
class ToyPlan:
    seed: int = 3
    optim: OptimPlan = field(default_factory=lambda: OptimPlan(lr=3e-3, warmup=5))
    loop: LoopPlan = field(default_factory=lambda: LoopPlan(steps=30, checkpoint_every=10, log_every=5))
    parallel: ParallelPlan = field(default_factory=ParallelPlan)


def toy_task(plan: ToyPlan, on_batch: Callable[[int], None] = lambda step: None, dtype=torch.bfloat16) -> Task:
    """A small network on random data that depends on the step; the loss is NaN where the data holds NaN."""
    torch.manual_seed(plan.seed)
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8))

    def pack(step: int, number: int) -> Pack:
        x = torch.randn(16, 8, generator=torch_rng(plan.seed, step, f"toy-{number}"))
        poison = on_batch(step) == "poison"
        return Pack(x * float("nan") if poison else x, (16.0,), (f"{step}/{number}",))

    def loss(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (module(x.to(dtype)) - x.flip(1)).float().square().mean(), {}

    return Task(model, pack, loss, samples=16, dtype=dtype)
