"""Kills one toy training run with SIGKILL again and again, resumes it to its end, and compares it with a whole one.

Run as `python kill_driver.py FOLDER KILLS`. It is its own process with one thread, so that a fork is safe and the
import of torch is paid once; prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from toys import ToyPlan, toy_task

from worldline.train import checkpoint
from worldline.train.loop import train
from worldline.train.plan import LoopPlan

STEPS = 450
MOST = 21  # batches before a kill: 20 kills cannot outlast the steps, however fast or slow the machine is

PLAN = ToyPlan(loop=LoopPlan(steps=STEPS, checkpoint_every=7, log_every=5))


def run_child(folder: Path, tell: int) -> None:
    """Trains in a forked child, which never returns, and tells of each batch."""
    status = 1
    try:
        train(toy_task(PLAN, lambda step: os.write(tell, b"!")), PLAN, folder, resume=True, quiet=True)
        status = 0
    finally:
        os._exit(status)


def kill_once(folder: Path, batches: int, delay: float) -> bool:
    """Starts or resumes the run, kills it `delay` seconds after some batch; False when it had ended by itself."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        run_child(folder, write)
    os.close(write)
    for _ in range(batches):
        os.read(read, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.close(read)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder: Path, kills: int) -> None:
    random.seed(0)
    starts, killed = [], 0
    for _ in range(kills):
        killed += kill_once(folder / "killed", random.randint(1, MOST), random.uniform(0.0, 0.01))
        starts.append(max(checkpoint.steps(folder / "killed" / "checkpoints"), default=0))
    train(toy_task(PLAN), PLAN, folder / "killed", resume=True, quiet=True)
    train(toy_task(PLAN), PLAN, folder / "whole", quiet=True)
    name = f"checkpoints/step-{STEPS:08d}"
    pair = [checkpoint.load(folder / run / name) for run in ("killed", "whole")]
    different = [
        f"{stem}/{key}"
        for stem, members in pair[1].tensors.items()
        for key, value in members.items()
        if not torch.equal(value, pair[0].tensors[stem][key])
    ]
    print(json.dumps({"killed": killed, "starts": starts, "different": different}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
