"""The state of one training run: what a step changes, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.parallel.context import split_sequence
from worldline.parallel.mesh import Crew
from worldline.parallel.shard import Objective, prepare, spread_like, whole
from worldline.train import checkpoint
from worldline.train.ahead import Ahead
from worldline.train.ema import EMA
from worldline.train.optim import Optimizer, learning_rate
from worldline.train.plan import LoopPlan, OptimPlan, completed, plan_changes, plan_dict, seed_of

Measure = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Pack:
    """Some samples of a step, that are computed at once.

    Attributes:
        data: what the loss reads.
        counts: over how many things each term of the loss is a mean, so that packs are weighed as if they were one.
        names: which samples these are, in order.
    """

    data: Any
    counts: tuple[float, ...] = (1.0,)
    names: tuple[str, ...] = ()


@dataclass
class Task:
    """What is trained. `model` is fp32 on its device; the loop rounds it to `dtype` and keeps fp32 masters."""

    model: nn.Module
    pack: Callable[[int, int], Pack]  # (step, number of the pack) -> samples; a pure function, called by any thread
    loss: Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]  # (model, data) -> terms, things to log
    samples: int  # per step
    dtype: torch.dtype = torch.float32
    validate: Measure | None = None  # of the averaged model
    gflop: float = 0.0  # per step, for the throughput figure
    peak: float = 0.0  # GFLOP/s of a matmul on this machine, measured; 0: not shown
    sequence: tuple[nn.Module, int] | None = None  # the part that can share a sequence, and its heads
    tokens: Callable[[Any], int] | None = None  # of a pack's data, for the throughput figure


@dataclass(frozen=True)
class Step:
    """What came of a step, the same in all processes: numbers to log, whether the update was lost and the names of all
    samples then, whether some process is out of time (`late`) or was told to stop."""

    values: dict[str, float]
    lost: bool = False
    late: bool = False
    told: bool = False
    names: tuple[str, ...] = ()


@dataclass
class Run:
    """The state of one training run. All processes have one, and call its methods together."""

    task: Task
    plan: Any
    out: Path
    crew: Crew
    say: Callable[[str], None] = print
    step: int = 0
    passed: int = 0  # steps whose samples are never seen, because weights went bad there: added to the step in `pack`
    skipped: int = 0
    rollbacks: int = 0
    seconds: float = 0.0
    doing: Callable[[str], None] = field(default=lambda what: None)

    def __post_init__(self) -> None:
        task, crew = self.task, self.crew
        self.optim: OptimPlan = self.plan.optim
        self.limits: LoopPlan = self.plan.loop
        self.folder = self.out / "checkpoints"
        # Taken before the weights are sharded; only the first process looks at it.
        self._shadow = copy.deepcopy(task.model).to(task.dtype).requires_grad_(False).eval() if crew.first else None
        if crew.context is not None:
            if task.sequence is None:
                raise UserError("parallel.context: only a transformer on packed tokens can share a sequence")
            model, heads = task.sequence
            split_sequence(model, heads, crew.context)
        self.objective = Objective(task.model, task.loss)
        self.masters = prepare(self.objective, crew, task.dtype)
        self.parameters = dict(task.model.named_parameters())
        self.optimizer = Optimizer(task.model, self.masters, self.optim, task.dtype)
        self.ema = EMA(self.optimizer, self.optim.ema, self.optim.ema_widths)
        self._owner = {f"model/{name}": name for name in self.parameters}
        self._owner |= {f"{kind}/{name}": name for kind, average in self.ema.averages.items() for name in average}
        self._owner |= {f"optim/{name}": name.partition(".")[2] for name in self.optimizer.moments()}
        tensors = {f"model/{name}": master for name, master in self.masters.items()}
        tensors |= {f"optim/{name}": moment for name, moment in self.optimizer.moments().items()}
        tensors |= {f"{kind}/{n}": value for kind, average in self.ema.averages.items() for n, value in average.items()}
        tensors |= {f"model/{name}": buffer for name, buffer in self.buffers().items()}
        readers = self.limits.readers if self.limits.readers >= 0 else 0 if crew.device.type == "cpu" else 2
        self._packs = Ahead(lambda at: [task.pack(at, number) for number in crew.packs()], readers)
        self.saver = checkpoint.Saver(self.folder, self.limits.keep, tensors, self._spread, crew, self.say)

    def close(self) -> None:
        """Lets the threads go that read ahead."""
        self._packs.close()

    def _spread(self, name: str, part: Tensor) -> Tensor:
        owner = self._owner.get(name)
        return part if owner is None else spread_like(self.parameters[owner], part, self.crew.disk_mesh)

    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers of the model by name."""
        return {name: value for name, value in self.task.model.state_dict().items() if name not in self.parameters}

    def save(self) -> None:
        """Begins to save this step."""
        state = {
            "format": 2,
            "seed": self.plan.seed,
            "updates": self.optimizer.updates,
            "passed": self.passed,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "seconds": self.seconds,
            "torch": torch.__version__,
            "plan": plan_dict(self.plan),
        }
        self.saver.begin(self.step, state)

    def restore(self) -> bool:
        """Continues from the newest sound checkpoint; False when there is none."""
        found = checkpoint.newest(self.folder, self.crew, self.say)
        if found is None:
            return False
        path, state = found
        self.saver.fill(path)
        self.optimizer.resume(int(state["updates"]))
        self.step = self.saver.saved = int(state["step"])
        self.passed, self.skipped, self.rollbacks = (int(state[k]) for k in ("passed", "skipped", "rollbacks"))
        self.seconds = float(state["seconds"])
        self.say(f"resumed at step {self.step}")
        for change in plan_changes(completed(state["plan"], self.plan), plan_dict(self.plan)):
            self.say(f"plan changed since the checkpoint: {change}")
        return True

    def roll_back(self) -> bool:
        """Goes back to the newest checkpoint and passes over all samples since, which made the loss bad; False when
        there is no checkpoint, or when it has been done too often."""
        reached, skipped, rollbacks = self.step + self.passed, self.skipped, self.rollbacks + 1
        self.saver.wait()
        if rollbacks > self.limits.rollbacks or not self.restore():
            return False
        self.passed, self.skipped, self.rollbacks = reached - self.step, skipped, rollbacks
        self.saver.saved = -1
        self.save()  # or a kill before the next checkpoint would bring the bad samples back
        return True

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, fp32, and the buffers, whole and on the CPU; the first process alone keeps them."""
        held: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            value = whole(spread_like(self.parameters[name], self.ema.weights.get(name, master)))
            if self.crew.first:
                held[name] = value.to("cpu", copy=True)
        if self.crew.first:
            held |= {name: value.to("cpu", copy=True) for name, value in self.buffers().items()}
        return held

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """The model with averaged weights, in the training dtype; of the first process alone, the others' is empty."""
        weights = self.weights()
        if self._shadow is None:
            return nn.Module()
        for name, value in self._shadow.state_dict().items():
            value.copy_(weights[name])
        return self._shadow.eval()

    def advance(self, ends: Callable[[], tuple[bool, bool]] = lambda: (False, False)) -> Step:
        """One step; `ends` says whether this process is out of time, and whether it was told to stop. A loss or a
        gradient that is not finite changes no weight: the step is lost."""
        at = self.step + self.passed
        self.doing(f"reading the samples of step {self.step}")
        packs = self._packs(at, self.limits.steps + self.passed)
        self.doing(f"computing step {self.step}")
        totals = self._totals(packs)
        summed: dict[str, float] = {}
        for number, pack in zip(self.crew.packs(), packs, strict=True):
            torch.manual_seed(seed_of(self.plan.seed, at, f"model-{number}"))  # nothing random outlives a step
            share = [mine / max(all_, 1e-12) for mine, all_ in zip(pack.counts, totals, strict=True)]
            terms, extra = self.objective(pack.data)
            loss = (terms * torch.tensor(share, device=terms.device)).sum()
            (loss * self.crew.replicas).backward()  # gradients are means over replicas
            self.optimizer.gather()
            for name, value in {"loss": loss.detach(), **extra}.items():
                summed[name] = summed.get(name, 0.0) + float(value) * (1.0 if name == "loss" else share[0])
            summed["tokens"] = summed.get("tokens", 0.0) + (self.task.tokens(pack.data) if self.task.tokens else 0)
        return self._update(summed, ends(), [name for pack in packs for name in pack.names])

    def _totals(self, packs: Iterable[Pack]) -> list[float]:
        """Sums of the counts of all packs of the step."""
        own = [sum(column) for column in zip(*(pack.counts for pack in packs), strict=True)]
        return self.crew.total(own) if self.plan.parallel.packs > 1 else own

    def _update(self, summed: dict[str, float], ends: tuple[bool, bool], names: list[str]) -> Step:
        lr = learning_rate(self.optim, self.step, self.limits.steps)
        keys = sorted(summed)
        plan = self.plan.parallel
        square = self.optimizer.norm() ** 2 * plan.context / plan.replicate  # each shard has so many holders
        *sums, square, late, told = self.crew.total([*(summed[key] for key in keys), square, *map(float, ends)])
        values, norm = dict(zip(keys, sums, strict=True)), math.sqrt(square) if square >= 0 else math.nan
        self.step += 1
        lost = not (math.isfinite(values["loss"]) and math.isfinite(norm))
        if lost:
            self.optimizer.drop()
            self.skipped += 1
            names = [name for each in self.crew.gather(names)[:: plan.context] for name in each]
        else:
            self.optimizer.step(lr, norm)
            self.ema.update(self.optimizer.updates)
        return Step({**values, "lr": lr, "norm": norm}, lost, late > 0, told > 0, tuple(names) if lost else ())
