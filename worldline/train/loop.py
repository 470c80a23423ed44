"""The training loop shared by the VAE and the DiT: exact resume, moving average, checkpoints, progress, clean stops.

A run is described by a `Task` (model, batch of a step, loss of a batch) and a plan. Because the batch and the learning
rate are pure functions of the step and everything else is in the checkpoint, a run that was killed anywhere and
resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.errors import UserError
from worldline.nn.memory import keep_freed_memory
from worldline.train import checkpoint
from worldline.train.ema import EMA
from worldline.train.log import RunLog
from worldline.train.optim import AdamW, learning_rate
from worldline.train.plan import LoopPlan, OptimPlan, plan_changes, plan_dict

MAX_SKIPS = 100  # updates in a row that may be lost to NaN before the run gives up
TERMINATED = ("SIGTERM", "SIGINT")

Measure = Callable[[nn.Module], Mapping[str, float]]
Callback = Callable[[int, nn.Module, Path], Mapping[str, float] | None]


@dataclass
class Task:
    """What is trained. `model` is fp32 on its device; the loop casts it to `dtype` and keeps fp32 masters."""

    model: nn.Module
    batch: Callable[[int], Any]  # step -> batch; a pure function
    loss: Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]  # (model, batch) -> loss, things to log
    samples: int  # per step
    dtype: torch.dtype = torch.float32
    validate: Measure | None = None  # of the averaged model
    gflop: float = 0.0  # per step, for the throughput figure
    peak: float = 0.0  # GFLOP/s of a matmul on this machine, measured; 0: not shown


@dataclass(frozen=True)
class Hook:
    """Calls `call(step, averaged model, folder)` every so many steps and logs the numbers that it returns."""

    every: int
    call: Callback


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished` is False after a time limit or a signal."""

    step: int
    finished: bool
    model: nn.Module  # averaged, in the training dtype
    weights: dict[str, Tensor]  # averaged, fp32, with buffers


class Run:
    """The state of one training run: everything that a checkpoint holds, and how it is saved and restored."""

    def __init__(self, task: Task, plan: Any, out: Path) -> None:
        self.task, self.plan, self.out = task, plan, out
        self.optim: OptimPlan = plan.optim
        self.limits: LoopPlan = plan.loop
        self.folder = out / "checkpoints"
        self.step = 0
        self.skipped = 0
        self.saved = -1
        self.seconds = 0.0
        self.optimizer = AdamW(task.model, plan.optim)  # masters are taken before the cast: the init stays exact
        self.ema = EMA(self.optimizer, plan.optim.ema)
        task.model.to(task.dtype)
        self.optimizer.publish()
        self._shadow: nn.Module | None = None

    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers of the model by name."""
        trained = {name for name, _ in self.task.model.named_parameters()}
        return {name: value for name, value in self.task.model.state_dict().items() if name not in trained}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, as views."""
        buffers = self.buffers()
        return {
            "model": {**dict(self.optimizer.masters()), **buffers},
            "optim": self.optimizer.moments(),
            "ema": {**self.ema.weights(), **buffers},
        }

    def save(self) -> None:
        """Saves unless this step is saved already."""
        if self.saved == self.step:
            return
        state = {
            "format": 1,
            "seed": self.plan.seed,
            "updates": self.optimizer.updates,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "torch": torch.__version__,
            "plan": plan_dict(self.plan),
        }
        checkpoint.save(self.folder, self.step, self.tensors(), state, self.limits.keep)
        self.saved = self.step

    @torch.no_grad()
    def restore(self, say: Callable[[str], None]) -> bool:
        """Continues from the newest sound checkpoint; False when there is none."""
        found = checkpoint.load_newest(self.folder, say)
        if found is None:
            return False
        for stem, members in self.tensors().items():
            saved = found.tensors.get(stem, {})
            wrong = [name for name, value in members.items() if name not in saved or saved[name].shape != value.shape]
            if wrong or len(saved) != len(members):
                name = wrong[0] if wrong else next(name for name in saved if name not in members)
                raise UserError(f"resume: {self.folder} holds another model ('{name}' does not fit the plan)")
            for name, value in members.items():
                value.copy_(saved[name])
        self.optimizer.publish()
        self.optimizer.updates = int(found.state["updates"])
        self.skipped = int(found.state["skipped"])
        self.seconds = float(found.state["seconds"])
        self.step = self.saved = found.step
        say(f"resumed at step {self.step}")
        for change in plan_changes(found.state["plan"], plan_dict(self.plan)):
            say(f"plan changed since the checkpoint: {change}")
        return True

    def averaged(self) -> nn.Module:
        """The model with averaged weights (one copy, reused)."""
        if self._shadow is None:
            self._shadow = copy.deepcopy(self.task.model).requires_grad_(False)
        self.ema.copy_to(self._shadow, self.task.model)
        return self._shadow.eval()

    def advance(self, batch: Any) -> dict[str, float]:
        """One step. A loss or gradient that is not finite changes no weight: the step counts as skipped."""
        lr = learning_rate(self.optim, self.step, self.limits.steps)
        loss, extra = self.task.loss(self.task.model, batch)
        value, norm = float(loss.detach()), math.nan
        if math.isfinite(value):
            loss.backward()
            norm = self.optimizer.gather()
        else:
            self.task.model.zero_grad(set_to_none=True)
        self.step += 1
        if math.isfinite(norm):
            self.optimizer.step(lr)
            self.ema.update(self.optimizer.updates)
        else:
            self.skipped += 1
        return {"loss": value, "lr": lr, "norm": norm, **{name: float(item) for name, item in extra.items()}}


def train(
    task: Task, plan: Any, out: Path, resume: bool = False, hooks: Sequence[Hook] = (), quiet: bool = False
) -> Outcome:
    """Runs `task` to the end of `plan` (which has `seed`, `optim` and `loop`), or until its time limit or a signal.

    Raises UserError when `out` holds a run and `resume` is False, or a checkpoint of another model.
    """
    if not resume and checkpoint.steps(out / "checkpoints"):
        raise UserError(f"out: {out} already holds a run; add --resume to continue it, or name another folder")
    keep_freed_memory()
    run = Run(task, plan, out)
    early: list[str] = []
    if resume:
        run.restore(early.append)
    log = RunLog(out, run.step, quiet, plan.loop.track)
    for line in early:
        log.say(line)
    try:
        with _signals() as stopping:
            finished = _steps(run, log, _with_validation(task, plan.loop, hooks), stopping)
    finally:
        log.close()
    weights = {name: value.detach().cpu().clone() for name, value in run.tensors()["ema"].items()}
    return Outcome(run.step, finished, run.averaged(), weights)


def _with_validation(task: Task, limits: LoopPlan, hooks: Sequence[Hook]) -> list[Hook]:
    validate = task.validate
    if validate is None:
        return list(hooks)
    return [Hook(limits.validate_every, lambda step, model, folder: validate(model)), *hooks]


def _steps(run: Run, log: RunLog, hooks: Sequence[Hook], stopping: threading.Event) -> bool:
    """The steps themselves; True when the plan's last step is done."""
    limits, meter = run.limits, Meter(run)
    deadline = time.monotonic() + 60 * limits.minutes if limits.minutes > 0 else math.inf
    lost = 0
    while run.step < limits.steps:
        values = run.advance(run.task.batch(run.step))
        lost = 0 if math.isfinite(values["norm"]) else lost + 1
        if lost:
            log.record(run.step, {"skipped": run.skipped, "loss": repr(values["loss"])})
            log.say(f"step {run.step}: loss {values['loss']} or its gradient is not finite; update skipped")
        if lost >= MAX_SKIPS:
            lower = run.optim.lr / 3
            raise UserError(f"optim.lr: {lost} updates in a row were not finite; try --set optim.lr={lower:.1g}")
        meter.add(values)
        last = run.step == limits.steps
        if last or _due(run.step, limits.log_every):
            summary = meter.summary()
            log.record(run.step, summary)
            log.progress(run.step, limits.steps, summary, min(meter.left(), deadline - time.monotonic()))
        stop = stopping.is_set() or time.monotonic() > deadline
        if last or stop or _due(run.step, limits.checkpoint_every):
            run.save()
        if stop and not last:
            log.say(f"stopped at step {run.step}, saved; --resume continues")
            return False
        for hook in hooks:
            if hook.every and (last or _due(run.step, hook.every)):
                measured = hook.call(run.step, run.averaged(), run.out)
                if measured:
                    log.record(run.step, measured)
                    log.say(f"step {run.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in measured.items()))
                meter.pause()
    run.save()
    return True


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Meter:
    """Means over the steps since the last summary, and the speed, leaving out the time that hooks took."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sums: dict[str, float] = {}
        self.count = 0
        self.rate = 0.0  # smoothed steps per second
        self.mark = time.monotonic()
        self.spent = 0.0

    def add(self, values: Mapping[str, float]) -> None:
        """Takes in one step."""
        now = time.monotonic()
        self.spent += now - self.mark
        self.run.seconds += now - self.mark
        self.mark = now
        self.count += 1
        for name, value in values.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def pause(self) -> None:
        """Forgets the time since the last step (a hook took it)."""
        self.mark = time.monotonic()

    def summary(self) -> dict[str, float]:
        """Means and speed; starts over."""
        rate = self.count / max(self.spent, 1e-9)
        self.rate = rate if self.rate == 0.0 else 0.7 * self.rate + 0.3 * rate
        values = {name: total / self.count for name, total in self.sums.items()}
        values["samples/s"] = rate * self.run.task.samples
        if self.run.task.gflop:
            values["GFLOP/s"] = rate * self.run.task.gflop
        if self.run.task.peak:
            values["MFU"] = rate * self.run.task.gflop / self.run.task.peak
        self.sums, self.count, self.spent = {}, 0, 0.0
        return values

    def left(self) -> float:
        """Seconds to the last step at the present speed."""
        return (self.run.limits.steps - self.run.step) / max(self.rate, 1e-9)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C ask the loop to save and stop after the step in hand (only the main thread may listen)."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {name: signal.signal(getattr(signal, name), lambda *_: asked.set()) for name in TERMINATED}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """GFLOP/s of a square matmul: the roof against which a run's share is printed."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    best, began = math.inf, time.monotonic()
    while time.monotonic() - began < seconds or best == math.inf:
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * size**3 / best / 1e9
