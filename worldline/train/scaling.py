"""A ladder of small DiTs, from which the loss of larger ones is foretold, and then held against a larger one.

All runs see the same batches in the same order and are judged on the same clips, noise and times. The rate is constant
and the weights are averaged with a power-function profile, over about the last tenth of a run wherever it is cut
(Karras et al. 2024, section 3.1): so one run gives the loss at every budget that it passes, where runs with a decay
need one for each (Haegele et al. 2024).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from worldline.diffusion.timesteps import logit_normal
from worldline.dit.model import DiT, DiTConfig
from worldline.errors import UserError
from worldline.nn.hollow import bare
from worldline.parallel.mesh import join
from worldline.text import WordConfig
from worldline.train.dit import TEXT_TOKENS, build, feed_of, task_of
from worldline.train.dit_plan import DiTPlan, plan_check, tokens_of
from worldline.train.feed import Feed
from worldline.train.flow import Sample, TextToVideo, assemble, flow_loss
from worldline.train.law import Fit, IsoFlop, Point, fit, isoflops
from worldline.train.loop import Hook
from worldline.train.loop import train as run_task
from worldline.train.plan import LoopPlan, OptimPlan, clock, completed, plan_changes, plan_dict, torch_rng
from worldline.train.precompute import ClipsPlan
from worldline.train.vae import DTYPES
from worldline.train.vae import load as load_vae

Say = Callable[[str], None]
EMA = 0.9999  # never reached in runs of less than 90 000 steps: until then the profile is a power, see `train.ema`
TOLERANCE = 0.01  # of the loss: how much better another rate must be to be worth a word


def _base() -> DiTPlan:
    """What all runs share: clips of 17 frames, all of them unknown, and a small text encoder of one size.

    A token is one latent cell of 16 values. With four cells it has 64, and a model of width 32 or 48, through which the
    noise of all of them must pass, is held up by that and not by its parameters.
    """
    shape = {"width": 32, "heads": 2, "depth": 2, "text_width": 64, "patch": (1, 1, 1)}
    return DiTPlan(
        config=DiTConfig(**shape, rope_axes=(4, 6, 6), learned_positions=(8, 8, 8)),  # type: ignore[arg-type]
        text=WordConfig(words=(), layers=1),
        clips=ClipsPlan(count=6144, workers=1),
        nothing_known=(1.0,),
        images=(0.0,),
        batch=8,
        validate_clips=256,
        optim=OptimPlan(schedule="constant", warmup=100, ema=EMA),
        loop=LoopPlan(checkpoint_every=250, keep=1, log_every=250, validate_every=250, sample_every=0),
    )


@dataclass(frozen=True)
class ScalingPlan:
    """The ladder. The last `held_out` rungs are foretold from the others, then run.

    Attributes:
        widths, depths, steps: of each rung, smallest first.
        rate: learning rate at `rate_width`; of another width times (rate_width / width) ** rate_power. One rate
            for all, power 0, ended lower than the root's at 48, 64 and 96 (by 0.5, 1 and 3.5 %).
        rates: multiples of it that are tried for `rate_steps` on the rungs number `rate_rungs`, as a check of the rule.
        least_steps: before which a loss is not fitted: what is learned first falls faster than any power.
    """

    name: str = "scaling"
    base: DiTPlan = field(default_factory=_base)
    widths: tuple[int, ...] = (32, 48, 64, 96, 128)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    steps: tuple[int, ...] = (3000, 2500, 2500, 2000, 2500)
    held_out: int = 1
    rate: float = 3e-3
    rate_width: int = 32
    rate_power: float = 0.0
    rates: tuple[float, ...] = (0.5, 2.0)
    rate_rungs: tuple[int, ...] = (0, 3)
    rate_steps: int = 500
    least_steps: int = 1000
    draws: int = 200  # refits of the law, for its band

    @property
    def fitted(self) -> int:
        """How many rungs the law is fitted to."""
        return len(self.widths) - self.held_out


@dataclass(frozen=True)
class Rung:
    """One run of the ladder."""

    name: str
    plan: DiTPlan
    size: float  # multiply-adds of a token in one forward pass
    parameters: int  # of the transformer

    @property
    def tokens_a_step(self) -> int:
        return self.plan.batch * tokens_of(self.plan)

    @property
    def tokens(self) -> int:
        """That it sees in all."""
        return self.tokens_a_step * self.plan.loop.steps

    @property
    def compute(self) -> float:
        """Operations of the whole run."""
        return 6.0 * self.size * self.tokens


def rungs(plan: ScalingPlan) -> list[Rung]:
    """The ladder, smallest first; raises UserError for one that cannot be fitted or run."""
    count = len(plan.widths)
    if not count == len(plan.depths) == len(plan.steps):
        raise UserError(f"widths, depths and steps: {count}, {len(plan.depths)} and {len(plan.steps)} values; one each")
    if not 0 <= plan.held_out <= count - 3:
        raise UserError(f"held_out: {plan.held_out} of {count} rungs leave {plan.fitted}; three must be fitted")
    if any(not 0 <= number < plan.fitted for number in plan.rate_rungs):
        raise UserError(f"rate_rungs: {plan.rate_rungs} must be rungs that are fitted, 0 to {plan.fitted - 1}")
    every, head = plan.base.loop.validate_every, plan.base.config.head_dim
    for name, values, unit in (("widths", plan.widths, head), ("steps", (*plan.steps, plan.rate_steps), every)):
        wrong = [value for value in values if value < unit or value % unit]
        if wrong:
            raise UserError(f"{name}: {wrong[0]} must be a multiple of {unit}")
    made = [_rung(plan, number) for number in range(count)]
    for before, after in pairwise(made):
        if after.size <= before.size:
            raise UserError(f"widths: {after.name} is no larger than {before.name}; list the rungs smallest first")
    plan_check(made[0].plan)
    return made


def _rung(plan: ScalingPlan, number: int, rate: float = 1.0) -> Rung:
    """Rung `number`, with its rate multiplied."""
    base, width, depth = plan.base, plan.widths[number], plan.depths[number]
    config = replace(base.config, width=width, depth=depth, heads=width // base.config.head_dim)
    peak = rate * plan.rate * (plan.rate_width / width) ** plan.rate_power
    steps = plan.steps[number] if rate == 1.0 else plan.rate_steps
    with bare():
        dit = DiT(config)
    name = f"{width}x{depth}" + (f"-rate{rate:g}" if rate != 1.0 else "")
    optim, loop = replace(base.optim, lr=peak), replace(base.loop, steps=steps)
    each = tokens_of(base)
    return Rung(
        name,
        replace(base, name=name, config=config, optim=optim, loop=loop),
        dit.flops(each, TEXT_TOKENS) / (2 * each),
        sum(parameter.numel() for parameter in dit.parameters()),
    )


def trials(plan: ScalingPlan) -> list[Rung]:
    """The short runs that check the rule of the rates."""
    return [_rung(plan, number, rate) for number in plan.rate_rungs for rate in plan.rates]


@dataclass(frozen=True)
class Told:
    """What the law says of a rung that it has not seen, and what came of it."""

    rung: str
    predicted: float
    interval: tuple[float, float]  # 90 %
    measured: float | None = None

    @property
    def error(self) -> float | None:
        """Of the prediction, relative to what was measured."""
        return None if self.measured is None else self.predicted / self.measured - 1


@dataclass(frozen=True)
class Report:
    """The ladder with its losses, the law and what it foretold."""

    rungs: Sequence[Rung]
    points: Sequence[Point]  # fitted
    unseen: Sequence[Point]  # of the rungs that are foretold
    fit: Fit
    isoflops: Sequence[IsoFlop]
    told: Sequence[Told]
    rates: dict[str, float]  # loss of every trial after `rate_steps`, and of its rung

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        ladder = [
            {"name": r.name, "parameters": r.parameters, "size": r.size, "tokens": r.tokens, "compute": r.compute,
             "rate": r.plan.optim.lr}
            for r in self.rungs
        ]  # fmt: skip
        return {
            "law": self.fit.as_dict(),
            "rungs": ladder,
            "predictions": [{**asdict(told), "error": told.error} for told in self.told],
            "points": [asdict(point) for point in self.points],
            "unseen": [asdict(point) for point in self.unseen],
            "isoflops": [asdict(curve) for curve in self.isoflops],
            "rates": self.rates,
        }

    def table(self) -> str:
        """For people."""
        last = {point.run: point for point in (*self.points, *self.unseen)}
        lines = [f"{'rung':8}{'parameters':>11}{'N':>11}{'tokens':>11}{'FLOP':>10}{'rate':>9}{'loss':>8}{'law':>8}"]
        for rung in self.rungs:
            expected = float(self.fit.law.loss(rung.size, rung.tokens))
            loss = f"{last[rung.name].loss:8.4f}" if rung.name in last else f"{'':8}"
            numbers = f"{rung.parameters:11,}{rung.size:11,.0f}{rung.tokens:11,}{rung.compute:10.2e}"
            lines.append(f"{rung.name:8}{numbers}{rung.plan.optim.lr:9.2g}{loss}{expected:8.4f}")
        constants: Any = self.fit.as_dict()

        def known(name: str) -> str:
            low, high = constants[name]["interval"]
            return f"{constants[name]['value']:.3f} [{low:.3f}, {high:.3f}]"

        law = self.fit.law
        lines += [
            "",
            f"L(N, D) = {law.floor:.4f} + {law.size_scale:.4g} / N^{law.size_power:.3f}"
            f" + {law.token_scale:.4g} / D^{law.token_power:.3f}   (residuals {100 * self.fit.spread:.2f} %)",
            f"E {known('floor')}, alpha {known('size_power')}, beta {known('token_power')}: 90 % intervals",
            f"compute-optimal: N grows as C^{known('exponent')}",
        ]
        bottoms = [(curve.compute, curve.best) for curve in self.isoflops if curve.best is not None]
        if bottoms:
            lines.append("parabolas have their bottom at N = " + ", ".join(f"{b:,.0f} ({c:.1e})" for c, b in bottoms))
        for told in self.told:
            low, high = told.interval
            line = f"{told.rung}: foretold {told.predicted:.4f} [{low:.4f}, {high:.4f}]"
            if told.measured is not None and told.error is not None:
                line += f", measured {told.measured:.4f}: {100 * told.error:+.2f} %"
            lines.append(line)
        return "\n".join([*lines, *self.advice()])

    def advice(self) -> list[str]:
        """A line for every rung of which a trial with another rate did better."""
        lines = []
        for name, loss in self.rates.items():
            rung, _, other = name.partition("-rate")
            if other and loss < (1 - TOLERANCE) * self.rates[rung]:
                line = f"rate: {rung} learns faster at {other} times its rate ({loss:.4f}, not {self.rates[rung]:.4f})"
                lines.append(line)
        return lines or (["rate: no other that was tried is better by 1 %"] if self.rates else [])


def run(plan: ScalingPlan, out: str | Path, say: Say = print) -> Report:
    """Trains what is not trained yet under `out`, fits the law, writes down what it foretells, and only then runs that.

    Writes `scaling.json`, `scaling.txt` and (with matplotlib) `scaling.png`. Raises UserError for a ladder that cannot
    be run, and where `out` holds runs of another plan.
    """
    out, ladder, tried = Path(out), rungs(plan), trials(plan)
    vae = load_vae(plan.base.vae)
    crew = join(plan.base.parallel, plan.base.device)
    feed = feed_of(plan.base, vae, crew.device, out, say)
    clocked = Clock([*tried, *ladder], out, say)
    for rung in [*ladder[:1], *tried, *ladder[1 : plan.fitted]]:
        clocked.train(rung, feed)
    report = gather(plan, out)
    write(report, out)
    for line in report.advice():
        say(line)
    for told in report.told:
        low, high = told.interval
        say(f"{told.rung}: the law foretells {told.predicted:.4f} [{low:.4f}, {high:.4f}]")
    for rung in ladder[plan.fitted :]:
        clocked.train(rung, feed)
    report = gather(plan, out)
    write(report, out)
    return report


def gather(plan: ScalingPlan, out: str | Path) -> Report:
    """The report of what has been trained under `out` so far."""
    ladder = rungs(plan)
    points = [p for rung in ladder[: plan.fitted] for p in losses(rung, Path(out), plan.least_steps)]
    fitted = fit(points, plan.draws)
    unseen = [p for rung in ladder[plan.fitted :] for p in losses(rung, Path(out), plan.least_steps)]
    told = []
    for rung in ladder[plan.fitted :]:
        low, high = fitted.loss_band(rung.size, rung.tokens)
        ends = [p.loss for p in unseen if p.run == rung.name and p.tokens >= rung.tokens]
        interval = float(low), float(high)
        told.append(Told(rung.name, float(fitted.law.loss(rung.size, rung.tokens)), interval, *ends))
    names = [ladder[number].name for number in plan.rate_rungs] + [rung.name for rung in trials(plan)]
    rates = {name: found[plan.rate_steps] for name in names if plan.rate_steps in (found := _logged(Path(out) / name))}
    return Report(ladder, points, unseen, fitted, isoflops(points), told, rates if plan.rates else {})


def losses(rung: Rung, out: Path, least: int) -> list[Point]:
    """Losses of a rung at steps that grow by 1.3 times at least, from `least` steps to its last."""
    found = {step: loss for step, loss in _logged(out / rung.name).items() if least <= step <= rung.plan.loop.steps}
    chosen: list[int] = []
    for step in sorted(found, reverse=True):
        if not chosen or step <= chosen[-1] / 1.3:
            chosen.append(step)
    return [Point(rung.name, rung.size, float(step * rung.tokens_a_step), found[step]) for step in reversed(chosen)]


def _logged(folder: Path) -> dict[int, float]:
    """Validation losses by step, from the log of a run."""
    path = folder / "log.jsonl"
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["step"]: record["val"] for record in records if "val" in record}


class Clock:
    """Trains rungs one after another and says how long all of it will still take."""

    def __init__(self, ladder: Sequence[Rung], out: Path, say: Say) -> None:
        self.out, self.say = out, say
        self.paces = {rung.name: step_seconds(rung.plan) for rung in ladder}
        self.missing = {rung.name: rung.plan.loop.steps - self._done(rung) for rung in ladder}
        self.ratio = 1.0  # of real time to the trial's

    def _done(self, rung: Rung) -> int:
        return max(_logged(self.out / rung.name), default=0)

    def left(self) -> float:
        """Seconds."""
        return self.ratio * sum(count * self.paces[name] for name, count in self.missing.items())

    def train(self, rung: Rung, feed: Feed) -> None:
        """Trains a rung to its last step, from where it was left."""
        folder = self.out / rung.name
        _claim(rung, folder)
        if self._done(rung) >= rung.plan.loop.steps:
            return
        plan = rung.plan
        crew = join(plan.parallel, plan.device)
        self.say(
            f"{rung.name}: {rung.parameters:,} parameters, {plan.loop.steps} steps; left in all {clock(self.left())}"
        )
        began, first = time.monotonic(), self._done(rung)

        def tick(step: int, averaged: Module, where: Path) -> None:
            spent = time.monotonic() - began
            if step > first:
                self.ratio = spent / ((step - first) * self.paces[rung.name])
            self.missing[rung.name] = plan.loop.steps - step
            self.say(f"{rung.name}: step {step} of {plan.loop.steps}; left in all {clock(self.left())}")

        task = task_of(plan, build(plan).to(crew.device), feed, crew)
        outcome = run_task(task, plan, folder, resume=True, hooks=[Hook(plan.loop.validate_every, tick)], quiet=True)
        if not outcome.finished:
            raise KeyboardInterrupt
        if outcome.step not in _logged(folder) and task.validate:  # killed between its last save and its last look
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": outcome.step, **task.validate(outcome.model)}) + "\n")


def _claim(rung: Rung, folder: Path) -> None:
    """Marks a folder as that of a rung; more steps may follow, since the rate is constant."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    mine = plan_dict(replace(rung.plan, loop=LoopPlan()))
    if path.exists():
        changes = plan_changes(completed(json.loads(path.read_text()), rung.plan), mine)
        if changes:
            raise UserError(f"--out: {folder} holds a run of another plan ({changes[0]}); name another folder")
    else:
        path.write_text(json.dumps(mine, indent=1))


def step_seconds(plan: DiTPlan, rounds: int = 3) -> float:
    """Seconds of a step of a plan on this machine, timed on random latents without the optimizer."""
    device = torch.device(plan.device)
    model: TextToVideo = build(plan).to(device, DTYPES[plan.dtype])
    patch, side = plan.config.patch, (5, 8, 8)
    count = max(1, plan.batch * tokens_of(plan) * math.prod(patch) // math.prod(side))
    noise = torch_rng(plan.seed, 0, "pace")
    shape = (plan.config.in_channels, *side)
    samples = [Sample(torch.randn(shape, generator=noise), torch.zeros(1, *side), range(side[0])) for _ in range(count)]
    prompts, times = ["a red ball rolls to the left"] * count, []
    for _ in range(rounds + 1):
        began = time.monotonic()
        batch = assemble(plan, samples, logit_normal(count, noise, 0.0), prompts, noise)
        flow_loss(model, batch, device)[0].backward()
        times.append(time.monotonic() - began)
    return sorted(times[1:])[rounds // 2]


def write(report: Report, out: Path) -> None:
    """The files of a report; the plot where matplotlib is installed."""
    from contextlib import suppress

    from worldline.media.write import write_bytes
    from worldline.train.law_plot import draw

    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "scaling.json", (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    write_bytes(out / "scaling.txt", (report.table() + "\n").encode())
    with suppress(UserError):  # an optional extra: the figures are in the other two
        write_bytes(out / "scaling.png", draw(report))


def dry_run(plan: ScalingPlan) -> str:
    """What the ladder comes to; nothing is rendered, trained or written."""
    ladder, tried = rungs(plan), trials(plan)
    lines = [f"{'rung':12}{'parameters':>11}{'tokens':>12}{'FLOP':>10}{'rate':>9}{'about':>10}"]
    total = 0.0
    for number, rung in enumerate([*ladder, *tried]):
        seconds = step_seconds(rung.plan) * rung.plan.loop.steps
        total += seconds
        what = "foretold, then run" if plan.fitted <= number < len(ladder) else ""
        numbers = f"{rung.parameters:11,}{rung.tokens:12,}{rung.compute:10.2e}{rung.plan.optim.lr:9.2g}"
        lines.append(f"{rung.name:12}{numbers}{clock(seconds):>10}  {what}".rstrip())
    count = plan.base.clips.count
    lines.append(f"in all {clock(total)} on this machine, besides {count} clips that are rendered and encoded once")
    return "\n".join(lines)
