"""Trains one small diffusion transformer in crews of several processes, for the tests that compare them.

A crew is forked from a process that has imported torch and run nothing, so it costs no import. Run as
`python -m tests.train.crews FOLDER STEPS NAME...` it trains the named crews, all unless given, one after the other and
prints one line of JSON: for each its exit codes, losses and samples by step.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # optimizers import it when they are made: once here, not once in every child

from worldline.data.packing import balanced
from worldline.dit.conditions import random_mask
from worldline.dit.config import DiTConfig
from worldline.dit.patchify import grid
from worldline.parallel.mesh import ParallelPlan
from worldline.text import WordConfig
from worldline.train.dit import build
from worldline.train.dit_plan import DiTPlan, cost_of
from worldline.train.flow import Batch, Sample, assemble, flow_terms, pack_of
from worldline.train.loop import Pack, Task, train
from worldline.train.plan import LoopPlan, OptimPlan, numpy_rng, torch_rng

SHAPES = ((16, 1, 4, 4), (16, 2, 4, 6), (16, 3, 4, 4), (16, 3, 6, 4))
PROMPTS = ("a red ball", "a blue cube falls", "", "two green cones")


@dataclass(frozen=True)
class Member:
    """A crew of `size` processes with a plan of its own."""

    size: int = 1
    parallel: ParallelPlan = field(default_factory=lambda: ParallelPlan(packs=4))
    optimizer: str = "adamw"


CREWS = {
    "alone": Member(),
    "packed": Member(parallel=ParallelPlan(packs=1)),
    "unpacked": Member(parallel=ParallelPlan(packs=8)),
    "again": Member(parallel=ParallelPlan(packs=4, recompute="full")),
    "fsdp2": Member(2),
    "fsdp4": Member(4),
    "hsdp2x2": Member(4, ParallelPlan(packs=4, replicate=2)),
    "context2": Member(2, ParallelPlan(packs=4, context=2)),
    "context2-fsdp2": Member(4, ParallelPlan(packs=4, context=2, recompute="selective")),
    "muon": Member(optimizer="muon"),
    "muon-fsdp3": Member(3, ParallelPlan(packs=6), optimizer="muon"),  # shards of unequal rows
    "muon-hsdp2x2": Member(4, ParallelPlan(packs=4, replicate=2), optimizer="muon"),
}


def plan_of(member: Member, steps: int, every: int = 0) -> DiTPlan:
    config = DiTConfig(width=32, depth=2, heads=4, text_width=16, rope_axes=(4, 2, 2), learned_positions=(4, 4, 4))
    return DiTPlan(
        config=config,
        text=WordConfig(words=(), layers=1, heads=2, buckets=32, word_dropout=0.0),
        layout=0.5,
        dtype="float32",
        optim=OptimPlan(member.optimizer, lr=1e-3, warmup=10),
        loop=LoopPlan(steps=steps, log_every=1, checkpoint_every=every, keep=3, validate_every=0),
        parallel=member.parallel,
    )


def task_of(plan: DiTPlan, on_pack: Callable[[int, int], None] = lambda step, number: None) -> Task:
    """Eight samples of four sizes in every step; each is drawn by itself, so that packs change none."""
    device = torch.device("cpu")

    def sample(step: int, place: int) -> Batch:
        use = f"sample-{place}"
        rng, noise = numpy_rng(plan.seed, step, use), torch_rng(plan.seed, step, use)
        clean = torch.randn(SHAPES[place // 2], generator=noise)
        one = Sample(clean, random_mask(rng, clean.shape, 0.5, True), range(clean.shape[1]))
        batch = assemble(plan, [one], torch.rand(1, generator=noise), [PROMPTS[rng.integers(4)]], noise)
        return replace(batch, layout=torch.rand(len(batch.noisy), 48, generator=noise), lesson=plan.layout)

    sizes = np.array([math.prod(grid(SHAPES[place // 2], plan.config.patch)) for place in range(8)])
    shares = balanced(cost_of(plan).of(sizes).tolist(), plan.parallel.packs)

    def pack(step: int, number: int) -> Pack:
        on_pack(step, number)
        alone = [sample(step, place) for place in shares[number]]
        batch = alone[0]
        for name in ("noisy", "target", "coords", "timestep", "known", "mask", "layout"):
            batch = replace(batch, **{name: torch.cat([getattr(one, name) for one in alone])})
        ends = torch.tensor([0, *(len(one.noisy) for one in alone)]).cumsum(0)
        batch = replace(batch, cu_seqlens=ends, prompts=[one.prompts[0] for one in alone])
        return pack_of(batch, [f"{step}/{place}" for place in shares[number]])

    return Task(
        model=build(plan),
        pack=pack,
        loss=lambda model, batch: flow_terms(model, batch, device),
        samples=8,
        dtype=getattr(torch, plan.dtype),
        sequence=None,
        tokens=lambda batch: len(batch.noisy),
    )


def member(plan: DiTPlan, out: Path, resume: bool, on_pack: Callable[[int, int], None]) -> None:
    """One process of a crew, to the end; the names of the samples of all its packs go to a file."""
    task = task_of(plan, on_pack)
    task.sequence = (task.model.dit, plan.config.heads)
    rank = os.environ.get("RANK", "0")
    out.mkdir(parents=True, exist_ok=True)
    drawn = task.pack
    with (out / f"names-{rank}.jsonl").open("a") as file:

        def pack(step: int, number: int) -> Pack:
            made = drawn(step, number)
            print(json.dumps([step, number, made.names]), file=file, flush=True)
            return made

        task.pack = pack
        train(task, plan, out, resume=resume, quiet=True)


def start(
    size: int,
    plan: DiTPlan,
    out: Path,
    resume: bool = False,
    on_pack: Callable[[int, int], None] = lambda step, number: None,
    work: Callable[..., None] = member,
) -> list[int]:
    """Forks a crew whose processes all do `work(plan, out, resume, on_pack)`; their ids, in their order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
            status = 1
            try:
                work(plan, out, resume, on_pack)
                status = 0
            except BaseException as error:
                if type(error).__name__ == "Resumable":
                    (out / f"lost-{rank}.txt").write_text(str(error))
                    status = 75
                else:
                    traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children


def finish(children: list[int]) -> list[int]:
    """Exit codes, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def losses(out: Path) -> list[float]:
    """Of every step, the newest where one was made twice."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [value for _, value in sorted({r["step"]: r["loss"] for r in records if "loss" in r}.items())]


def samples(out: Path) -> list[str]:
    """Names of all samples in the order of steps and packs."""
    lines = [json.loads(line) for path in out.glob("names-*.jsonl") for line in path.read_text().splitlines()]
    return [
        name for _, names in sorted({(step, number): names for step, number, names in lines}.items()) for name in names
    ]


def main(folder: Path, steps: int, names: list[str]) -> None:
    report = {}
    for name in names:
        crew = CREWS[name]
        codes = finish(start(crew.size, plan_of(crew, steps), folder / name))
        report[name] = {"codes": codes, "losses": losses(folder / name), "samples": samples(folder / name)}
    print(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(CREWS))
