"""Reads the samples of the next steps while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `make` gives for a step, made by threads before it is asked for.

    `make` is a pure function of the step, so nothing depends on how far ahead the threads are: after a resume or a
    rollback what they made for other steps is dropped. What it raises is raised where that step is asked for.

    Args:
        make: samples of a step; called by several threads at once.
        readers: threads, each at most two steps ahead; 0 makes every step when it is asked for.
    """

    def __init__(self, make: Callable[[int], T], readers: int) -> None:
        self.make, self.depth = make, 2 * readers
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="reader") if readers else None
        self._waiting: dict[int, Future[T]] = {}

    def __call__(self, step: int, end: int) -> T:
        """Samples of `step`; those of the steps after it, before `end`, are begun."""
        if self._pool is None:
            return self.make(step)
        wanted = range(step, max(min(step + 1 + self.depth, end), step + 1))
        for other in [other for other in self._waiting if other not in wanted]:
            self._waiting.pop(other).cancel()
        for other in wanted:
            if other not in self._waiting:
                self._waiting[other] = self._pool.submit(self.make, other)
        return self._waiting.pop(step).result()

    def close(self) -> None:
        """Drops what nobody has asked for; no thread goes on."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
