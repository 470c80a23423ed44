"""An engine that paints but colours, quickly and the same each time; as a script, a process that a test may kill.

python -m tests.serve.fake DATA_DIR DATABASE_URL STEPS PAUSE
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from worldline.serve.engine import Watch, run
from worldline.serve.files import Done, Made, write_files
from worldline.serve.guard import log_to_stderr
from worldline.serve.orders import Model, Order
from worldline.serve.settings import settings_of


class Fake:
    """A worker of `steps` steps and frames of one colour. While `gate` is not set it waits before its second step."""

    def __init__(self, steps: int = 3, pause: float = 0.0) -> None:
        self.steps, self.pause = steps, pause
        self.gate, self.waiting = threading.Event(), threading.Event()
        self.gate.set()
        self.done: list[Order] = []
        self.packed: list[int] = []
        self.error: Exception | None = None
        self.noise = False

    def do(self, order: Order, folder: Path, watch: Watch) -> Done:
        for name in order.inputs:
            assert (folder / name).stat().st_size
        self.walk(watch)
        self.done.append(order)
        return write_files(noisy(order) if self.noise else painted(order), folder)

    def together(self, orders: Sequence[Order], folders: Sequence[Path], watch: Watch) -> Iterator[Done]:
        self.packed.append(len(orders))
        self.walk(watch)
        for order, folder in zip(orders, folders, strict=True):
            yield write_files(painted(order), folder)

    def walk(self, watch: Watch) -> None:
        for step in range(1, self.steps + 1):
            watch(step, self.steps)
            time.sleep(self.pause)
            self.waiting.set()
            while not self.gate.wait(0.05):
                watch.renew()  # as the engine's thread does in a long step
                watch.check()
        if self.error is not None:
            raise self.error

    def glimpse(self, index: int) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)


def painted(order: Order) -> Made:
    """Frames of the colour that the seed says."""
    facts, seed = order.facts, order.settings["seed"]
    frame = np.broadcast_to(np.array([seed % 251, seed % 241, seed % 239], np.uint8), (facts.height, facts.width, 3))
    return Made((frame.copy() for _ in range(facts.frames)), facts.fps, {"seed": seed})


def noisy(order: Order) -> Made:
    """Frames that no encoder can make small."""
    facts, rng = order.facts, np.random.default_rng(0)
    shape = facts.height, facts.width, 3
    return Made((rng.integers(0, 256, shape, np.uint8) for _ in range(facts.frames)), facts.fps, {})


def main(folder: str, database: str, steps: str, pause: str) -> None:
    settings = settings_of(folder, database)
    log_to_stderr()
    run(settings, Model(None, settings.limits), Fake(int(steps), float(pause)))


if __name__ == "__main__":
    main(*sys.argv[1:])
