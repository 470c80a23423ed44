"""AdamW on flat fp32 master weights beside a model in any dtype, and learning-rate schedules as functions of the step.

All parameters live end to end in one fp32 vector per weight-decay group, so one step is a handful of long vector
operations however many tensors the model has; pure-bf16 weights train without losing small updates because the
update is made on the masters and then rounded into the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.train.plan import OptimPlan

SCHEDULES = ("cosine", "linear", "constant", "trapezoid")


def learning_rate(plan: OptimPlan, step: int, steps: int) -> float:
    """Learning rate of update `step` (0-based) out of `steps`: a pure function, so a resumed run follows it exactly."""
    if plan.schedule not in SCHEDULES:
        raise UserError(f"optim.schedule: '{plan.schedule}' is unknown; one of {', '.join(SCHEDULES)}")
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    done = min(1.0, (step - plan.warmup) / max(1, steps - plan.warmup))
    if plan.schedule == "constant":
        share = 1.0
    elif plan.schedule == "linear":
        share = 1.0 - done
    elif plan.schedule == "trapezoid":
        share = min(1.0, (1.0 - done) / 0.2)
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * done))
    return plan.lr * (plan.final + (1.0 - plan.final) * share)


class FlatGroup:
    """Some parameters of a model, their fp32 masters, gradients and AdamW moments, each as one vector."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], weight_decay: float) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.weight_decay = weight_decay
        size = sum(parameter.numel() for parameter in self.parameters)
        device = self.parameters[0].device
        self.master = torch.empty(size, device=device)
        self.grad = torch.zeros(size, device=device)
        self.first = torch.zeros(size, device=device)
        self.second = torch.zeros(size, device=device)
        self.grad_views = self.views(self.grad)
        self.master_views = self.views(self.master)
        torch._foreach_copy_(self.master_views, [parameter.detach() for parameter in self.parameters])

    def views(self, flat: Tensor) -> list[Tensor]:
        """`flat` cut into tensors shaped like the parameters."""
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def gather(self) -> None:
        """Copies the model's gradients into the fp32 vector (zero where a parameter took no part) and frees them."""
        pairs = zip(self.grad_views, self.parameters, strict=True)
        used = [(view, parameter.grad) for view, parameter in pairs if parameter.grad is not None]
        if len(used) < len(self.parameters):
            self.grad.zero_()
        torch._foreach_copy_([view for view, _ in used], [grad for _, grad in used])
        for parameter in self.parameters:
            parameter.grad = None

    def publish(self) -> None:
        """Rounds the masters into the model."""
        torch._foreach_copy_([parameter.detach() for parameter in self.parameters], self.master_views)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2); matrices decay, the rest do not."""

    def __init__(self, model: nn.Module, plan: OptimPlan) -> None:
        self.plan = plan
        self.updates = 0
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [(name, p) for name, p in named if p.ndim >= 2]
        vectors = [(name, p) for name, p in named if p.ndim < 2]
        kinds = ((matrices, plan.weight_decay), (vectors, 0.0))
        self.groups = [FlatGroup(members, decay) for members, decay in kinds if members]
        self.publish()

    def gather(self) -> float:
        """Takes the model's gradients, clips them to the plan's global norm; returns the norm before clipping."""
        for group in self.groups:
            group.gather()
        norms = torch.stack([torch.linalg.vector_norm(group.grad) for group in self.groups])
        norm = float(torch.linalg.vector_norm(norms))
        if math.isfinite(norm) and norm > self.plan.clip > 0:
            for group in self.groups:
                group.grad.mul_(self.plan.clip / norm)
        return norm

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update of masters and model from the gathered gradients."""
        self.updates += 1
        beta1, beta2 = self.plan.beta1, self.plan.beta2
        correction1 = 1.0 - beta1**self.updates
        correction2 = math.sqrt(1.0 - beta2**self.updates)
        for group in self.groups:
            group.first.lerp_(group.grad, 1.0 - beta1)
            group.second.mul_(beta2).addcmul_(group.grad, group.grad, value=1.0 - beta2)
            if group.weight_decay:
                group.master.mul_(1.0 - lr * group.weight_decay)
            denominator = torch.sqrt(group.second, out=group.grad).div_(correction2).add_(self.plan.eps)
            group.master.addcdiv_(group.first, denominator, value=-lr / correction1)
        self.publish()

    def publish(self) -> None:
        """Rounds the masters into the model."""
        for group in self.groups:
            group.publish()

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master weight) of every trained parameter, as views that training goes on changing."""
        for group in self.groups:
            yield from zip(group.names, group.master_views, strict=True)

    def moments(self) -> dict[str, Tensor]:
        """Both moments by name, as views: copying into them restores the optimizer."""
        tensors: dict[str, Tensor] = {}
        for group in self.groups:
            for kind, flat in (("first", group.first), ("second", group.second)):
                tensors |= {f"{kind}.{n}": view for n, view in zip(group.names, group.views(flat), strict=True)}
        return tensors
