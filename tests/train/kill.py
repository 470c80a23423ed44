"""Kills one toy training run with SIGKILL again and again, resumes it, and compares it with one that was left alone.

    python -m tests.train.kill --kills 200

Each life ends at a random moment, one in three inside a save. Some of the checkpoints that a life left are torn (cut,
emptied, a bit flipped, a file gone), some saves find the disk full. Every checkpoint that a resume begins from must be
that of the whole run, bit for bit, and so must the last. Lives are forked from a process that has imported torch, so
that one costs no more than its steps.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it when they are made: once here, not in every life

from tests.train.toys import ToyPlan, toy_task
from worldline.train import checkpoint
from worldline.train.loop import train
from worldline.train.plan import LoopPlan

EVERY = 3  # steps between checkpoints
STRIDE = 9  # most steps that a life gets further


def plan_of(kills: int) -> ToyPlan:
    # However fast the machine is, the last kill comes before the last step.
    return ToyPlan(loop=LoopPlan(steps=(kills + 2) * (STRIDE + EVERY), checkpoint_every=EVERY, log_every=5, keep=3))


def live(plan: ToyPlan, folder: Path, tell: int, full: bool) -> None:
    """Trains in a forked child, which never returns; it tells of each batch (b) and of each save (s)."""
    status = 1
    try:
        publish, saves = checkpoint._publish, 0

        def told(part: Path, final: Path, state: dict) -> None:
            nonlocal saves
            saves += 1
            os.write(tell, b"s")
            if full and saves == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            publish(part, final, state)

        checkpoint._publish = told
        train(toy_task(plan, lambda step: os.write(tell, b"b")), plan, folder, resume=True, quiet=True)
        status = 0
    finally:
        os._exit(status)


def kill_once(plan: ToyPlan, folder: Path, rng: random.Random, full: bool) -> tuple[bool, bool]:
    """One life; whether it was killed, and whether inside a save."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        live(plan, folder, write, full)
    os.close(write)
    inside = rng.random() < 1 / 3
    left = rng.randint(1, STRIDE // EVERY) if inside else rng.randint(1, STRIDE)
    while left and (said := os.read(read, 1)):
        left -= said == (b"s" if inside else b"b")
    time.sleep(rng.uniform(0.0, 0.004))
    os.kill(child, signal.SIGKILL)
    os.close(read)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1]), inside


def tear(folder: Path, rng: random.Random) -> str:
    """Damages the newest checkpoint when there is another; what was done."""
    steps = checkpoint.steps(folder)
    if len(steps) < 2:
        return ""
    path = rng.choice(sorted((folder / f"step-{steps[-1]:08d}").iterdir()))
    data = bytearray(path.read_bytes())
    how = rng.choice(("cut", "emptied", "flipped", "gone"))
    if how == "gone":
        path.unlink()
        return how
    if how == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data if how == "flipped" else data[: 0 if how == "emptied" else rng.randrange(len(data))])
    return how


def difference(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> list[str]:
    """Names of what is not the same to the bit."""
    counts = [f"state/{key}" for key in ("updates", "skipped", "passed") if one.state[key] != other.state[key]]
    names = sorted(one.tensors.keys() | other.tensors.keys())
    return counts + [
        name
        for name in names
        if name not in one.tensors
        or name not in other.tensors
        or not torch.equal(one.tensors[name], other.tensors[name])
    ]


def whole_run(plan: ToyPlan, folder: Path) -> dict[int, checkpoint.Checkpoint]:
    """Every checkpoint of a run that nothing happens to."""
    keep_all = ToyPlan(plan.seed, plan.optim, LoopPlan(**{**vars(plan.loop), "keep": plan.loop.steps}))
    train(toy_task(keep_all), keep_all, folder, quiet=True)
    made = folder / "checkpoints"
    return {step: checkpoint.load(made / f"step-{step:08d}") for step in checkpoint.steps(made)}


def main(folder: Path, kills: int, seed: int, say: Callable[[str], None]) -> dict:
    rng, plan = random.Random(seed), plan_of(kills)
    truth = whole_run(plan, folder / "whole")
    report: dict = {"kills": 0, "in_saves": 0, "torn": 0, "disk_full": 0, "starts": [], "different": []}
    made = folder / "killed" / "checkpoints"
    began = time.monotonic()
    for number in range(kills):
        full = rng.random() < 0.15
        killed, inside = kill_once(plan, folder / "killed", rng, full)
        report["kills"] += killed
        report["in_saves"] += killed and inside
        report["disk_full"] += full
        report["torn"] += rng.random() < 0.15 and bool(tear(made, rng))
        for step in reversed(checkpoint.steps(made)):
            try:
                found = checkpoint.load(made / f"step-{step:08d}")
            except checkpoint.Damaged:
                continue
            report["starts"].append(step)
            report["different"] += [f"{step}: {name}" for name in difference(found, truth[step])]
            break
        if (number + 1) % 20 == 0:
            say(f"{number + 1}/{kills} lives, step {report['starts'][-1]}, {time.monotonic() - began:.0f} s")
    train(toy_task(plan), plan, folder / "killed", resume=True, quiet=True)
    last = plan.loop.steps
    found = checkpoint.load(made / f"step-{last:08d}")
    report["different"] += [f"end: {name}" for name in difference(found, truth[last])]
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where:
        done = main(Path(where), args.kills, args.seed, lambda line: print(line, file=sys.stderr))
    print(json.dumps(done))
    sys.exit(bool(done["different"]) or done["kills"] != args.kills)
