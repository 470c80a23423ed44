"""The training loop shared by the VAE, the DiT and the captioner: checkpoints, guards, progress, clean stops.

A run is described by a `Task` (model, samples of a step, their loss) and a plan. Because samples and learning rate are
pure functions of the step and everything else is in the checkpoint, a run that was killed anywhere and resumed ends in
the same bits as one that was not, and may go on with another number of processes.
"""

from __future__ import annotations

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
from worldline.parallel.mesh import join
from worldline.train import checkpoint
from worldline.train.log import RunLog
from worldline.train.plan import LoopPlan
from worldline.train.run import Pack, Run, Step, Task

__all__ = ["Callback", "Hook", "Outcome", "Pack", "Task", "matmul_peak", "train"]

TERMINATED = ("SIGTERM", "SIGINT")

Callback = Callable[[int, nn.Module, Path], Mapping[str, float] | None]


@dataclass(frozen=True)
class Hook:
    """Calls `call(step, averaged model, folder)` every so many steps and logs the numbers that it returns."""

    every: int
    call: Callback


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished` is False after a time limit or a signal, `told` True after a signal. The first
    process has the model and its weights, the others none."""

    step: int
    finished: bool
    model: nn.Module  # averaged, in the training dtype
    weights: dict[str, Tensor]  # averaged, fp32, with buffers
    told: bool = False
    stalled: float = 0.0  # seconds that training waited for checkpoints


def train(
    task: Task, plan: Any, out: Path, resume: bool = False, hooks: Sequence[Hook] = (), quiet: bool = False
) -> Outcome:
    """Runs `task` to the end of `plan` (`seed`, `optim`, `loop`, `parallel`), or until its time limit or a signal.

    Under `torchrun` all processes call it. Raises UserError when `out` holds a run and `resume` is False, or the
    checkpoint of another model; Resumable when another process is gone.
    """
    if not resume and checkpoint.steps(out / "checkpoints"):
        raise UserError(f"out: {out} already holds a run; add --resume to continue it, or name another folder")
    keep_freed_memory()
    crew = join(plan.parallel, next(task.model.parameters()).device.type)
    early: list[str] = []
    run = Run(task, plan, out, crew, early.append)
    with crew.watched() as run.doing:
        if resume:
            run.restore()
        log = RunLog(out, run.step, quiet, plan.loop.track) if crew.first else None
        run.say = run.saver.say = log.say if log else lambda line: None
        for line in early:
            run.say(line)
        try:
            with _signals() as stopping:
                finished, told = _steps(run, log, _with_validation(task, plan.loop, hooks), stopping)
        finally:
            run.close()
            if log:
                log.close()
        weights = run.weights()
        return Outcome(run.step, finished, run.averaged(), weights, told, run.saver.stalled)


def _with_validation(task: Task, limits: LoopPlan, hooks: Sequence[Hook]) -> list[Hook]:
    validate = task.validate
    if validate is None:
        return list(hooks)
    return [Hook(limits.validate_every, lambda step, model, folder: validate(model)), *hooks]


def _steps(run: Run, log: RunLog | None, hooks: Sequence[Hook], stopping: threading.Event) -> tuple[bool, bool]:
    """The steps themselves; whether the plan's last step is done, and whether a signal came."""
    limits, meter = run.limits, Meter(run)
    deadline = time.monotonic() + 60 * limits.minutes if limits.minutes > 0 else math.inf
    lost = 0
    while run.step < limits.steps:
        done = run.advance(lambda: (time.monotonic() > deadline, stopping.is_set()))
        lost = lost + 1 if done.lost else 0
        if lost:
            _tell_lost(run, log, done)
        if lost > limits.skips:
            _go_back(run, lost)
            lost = 0
            continue
        meter.add(done.values)
        last = run.step == limits.steps
        if last or _due(run.step, limits.log_every):
            summary = meter.summary()
            if log:
                log.record(run.step, summary)
                log.progress(run.step, limits.steps, summary, min(meter.left(), deadline - time.monotonic()))
        stop = done.late or done.told
        if last or stop or _due(run.step, limits.checkpoint_every):
            run.save()
        if stop and not last:
            saved = run.saver.wait()
            run.say(f"stopped at step {run.step}{', saved' if saved else ''}; --resume continues")
            return False, done.told
        _call(run, log, [hook for hook in hooks if hook.every and (last or _due(run.step, hook.every))], meter)
    run.save()
    run.saver.wait()
    return True, False


def _tell_lost(run: Run, log: RunLog | None, done: Step) -> None:
    loss = done.values["loss"]
    if log:
        log.record(run.step, {"skipped": run.skipped, "loss": repr(loss), "samples": list(done.names)})
    run.say(f"step {run.step}: loss {loss} or its gradient is not finite; update skipped")


def _go_back(run: Run, lost: int) -> None:
    if run.roll_back():
        run.say(f"{lost} updates in a row were not finite: back at step {run.step}, past the samples since")
        return
    lower = run.optim.lr / 3
    raise UserError(f"optim.lr: {lost} updates in a row were not finite; try --set optim.lr={lower:.1g}")


def _call(run: Run, log: RunLog | None, hooks: Sequence[Hook], meter: Meter) -> None:
    """Hooks look at the averaged model in the first process; the others wait."""
    if not hooks:
        return
    model = run.averaged()
    run.doing(f"looking at step {run.step}")
    with run.crew.first_alone():
        for hook in hooks if log else ():
            measured = hook.call(run.step, model, run.out)
            if measured and log:
                log.record(run.step, measured)
                log.say(f"step {run.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in measured.items()))
    meter.pause()


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
        tokens = values.pop("tokens", 0.0)
        values["samples/s"] = rate * self.run.task.samples
        if tokens:
            values["tokens/s"] = tokens * rate
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
