"""Muon: momentum made orthogonal, for the matrices inside a model's repeated blocks (Jordan et al. 2024).

An update moves all directions of a matrix alike, instead of the few that lead its gradient. It is scaled to the size of
AdamW's (Moonlight, Liu et al. 2025, section 2.2), so that both share one rate and one decay.

`torch.optim.Muon` computes the same on a whole matrix, always in bfloat16. Here matrices lie in shards, every process
makes a share of them whole, and the products are in the type that the model computes with: in fp32 a run does not
depend on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worldline.data.packing import balanced
from worldline.parallel.matrices import holders, on_wholes
from worldline.parallel.shard import repeated
from worldline.train.plan import OptimPlan

QUINTIC = 3.4445, -4.7750, 2.0315  # coefficients whose slope at zero is steepest
ITERATIONS = 5


def hidden(model: nn.Module) -> list[str]:
    """Names of the weights of linear layers and convolutions inside repeated blocks. What is outside, embeddings and
    the first and last layers, is AdamW's, as are tables, gains and biases."""
    names = {module: name for name, module in model.named_modules()}
    inside = [module for block in repeated(model) for module in block.modules()]
    mixing = [m for m in inside if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    return [f"{names[module]}.weight" for module in mixing if module.weight.requires_grad]


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, but for singular values between about 0.7 and 1.2: five steps of the Newton-Schulz
    iteration with a quintic (Jordan et al. 2024)."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Updates fp32 masters in place from their gradients.

    Args:
        parameters: the model's, by name; a convolution's weight (out, in, ...) is a matrix of `out` rows.
        masters: what this process holds of each.
        dtype: of the products.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], masters: Mapping[str, Tensor], plan: OptimPlan, dtype: torch.dtype
    ) -> None:
        self.plan, self.dtype = plan, dtype
        self.parameters, self.masters = dict(parameters), dict(masters)
        self.momenta = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        self.shapes = [parameter.flatten(1).shape for parameter in self.parameters.values()]
        costs = [float(rows * columns * min(rows, columns)) for rows, columns in self.shapes]
        self.shares = balanced(costs, min(map(holders, self.parameters.values())))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update, with Nesterov's momentum and decoupled weight decay."""
        masters, momenta = list(self.masters.values()), list(self.momenta.values())
        grads = [master.grad if master.grad is not None else torch.zeros_like(master) for master in masters]
        torch._foreach_lerp_(momenta, grads, 1.0 - self.plan.momentum)
        leads = torch._foreach_lerp(grads, momenta, self.plan.momentum)
        updates = on_wholes(
            list(self.parameters.values()),
            [lead.flatten(1) for lead in leads],
            self.shares,
            lambda matrix: orthogonal(matrix.to(self.dtype)).to(matrix.dtype),
        )
        torch._foreach_mul_(masters, 1.0 - lr * self.plan.weight_decay)
        for master, update, shape in zip(masters, updates, self.shapes, strict=True):
            master.add_(update.view_as(master), alpha=-0.2 * math.sqrt(max(shape)) * lr)
