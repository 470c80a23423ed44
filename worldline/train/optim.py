"""AdamW and Muon on fp32 masters of a model's weights, and learning-rate schedules as functions of the step.

The masters may be the model's own weights, copies of them beside a model in bf16, or shards of them: AdamW's update is
made in fp32 and element by element, so what a process holds is all that it needs. Pure-bf16 weights train without
losing small updates because these add up in the masters, which are then rounded into the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.parallel.shard import local
from worldline.train.muon import Muon, hidden
from worldline.train.plan import OptimPlan


def learning_rate(plan: OptimPlan, step: int, steps: int) -> float:
    """Learning rate of update `step` (0-based) out of `steps`: a pure function, so a resumed run follows it exactly."""
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


class Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), torch's own in one pass over memory;
    matrices decay, the rest do not. Where the plan's kind is "muon", hidden matrices are Muon's instead.

    Args:
        model: whose gradients are taken.
        masters: fp32 weights by name, as `parallel.shard.prepare` gives them; they are updated in place.
        dtype: that the model computes with, and Muon as well.

    Raises UserError for Muon on a model without hidden matrices.
    """

    def __init__(
        self, model: nn.Module, masters: Mapping[str, Tensor], plan: OptimPlan, dtype: torch.dtype = torch.float32
    ) -> None:
        self.plan = plan
        self.updates = 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {name: nn.Parameter(masters[name]) for name in self.parameters}
        turned = hidden(model) if plan.kind == "muon" else []
        if plan.kind == "muon" and not turned:
            raise UserError("optim.kind: muon is for matrices in repeated blocks, which this model lacks; use adamw")
        self.muon: Muon | None = None
        if turned:
            owners, own = ({name: of[name] for name in turned} for of in (self.parameters, self.masters))
            self.muon = Muon(owners, own, plan, dtype)
        self.plain = {name: master for name, master in self.masters.items() if name not in turned}
        kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, master in self.plain.items():
            kinds[self.parameters[name].ndim >= 2].append(master)
        decays = (0.0, plan.weight_decay)
        groups = [{"params": kind, "weight_decay": decay} for kind, decay in zip(kinds, decays, strict=True) if kind]
        self.engine = torch.optim.AdamW(groups, plan.lr, (plan.beta1, plan.beta2), plan.eps, fused=True)
        for master in self.plain.values():
            zeros = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
            self.engine.state[master] = {"step": torch.zeros((), device=master.device), **zeros}
        pairs = [(local(self.parameters[name].detach()), master.detach()) for name, master in self.masters.items()]
        self._apart = [(own, master) for own, master in pairs if own.data_ptr() != master.data_ptr()]

    def gather(self) -> None:
        """Adds the model's gradients to those of the masters, in fp32, and frees them."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            grad, master = local(parameter.grad).float().contiguous(), self.masters[name]
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            parameter.grad = None

    def norm(self) -> float:
        """Norm of all gathered gradients that this process holds; a weight that took no part has a gradient of zero."""
        norms = torch._foreach_norm(self._gradients())
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _gradients(self) -> list[Tensor]:
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def drop(self) -> None:
        """Forgets the gathered gradients."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def step(self, lr: float, norm: float) -> None:
        """One update of masters and model from the gathered gradients, whose global norm is clipped to the plan's."""
        if norm > self.plan.clip > 0:
            torch._foreach_mul_(self._gradients(), self.plan.clip / norm)
        for group in self.engine.param_groups:
            group["lr"] = lr
        self.engine.step()
        if self.muon is not None:
            self.muon.step(lr)
        self.updates += 1
        self.drop()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into a model that has weights of its own."""
        if self._apart:
            torch._foreach_copy_([own for own, _ in self._apart], [master for _, master in self._apart])

    def moments(self) -> dict[str, Tensor]:
        """AdamW's `first.NAME` and `second.NAME`, Muon's `momentum.NAME`; copying into them and `resume` restore the
        optimizer."""
        kinds = (("first", "exp_avg"), ("second", "exp_avg_sq"))
        held = {f"{kind}.{n}": self.engine.state[m][key] for kind, key in kinds for n, m in self.plain.items()}
        return held | {f"momentum.{name}": value for name, value in (self.muon.momenta if self.muon else {}).items()}

    def resume(self, updates: int) -> None:
        """Goes on after so many updates; masters and moments have been filled."""
        self.updates = updates
        for state in self.engine.state.values():
            state["step"].fill_(updates)
        self.publish()
