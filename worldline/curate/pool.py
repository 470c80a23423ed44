"""Work on files that may be broken: a process for each, with limits on time and memory; none can stop the rest.

Decoders crash, hang and swell on damaged input. So every file has a process of its own, forked from a server that has
imported everything; whatever happens there is an outcome here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from worldline.nn.memory import keep_freed_memory

ATTEMPTS = 3  # a process that something kills is started again; what kills it thrice is the file
SERVER_IMPORTS = ["av", "cv2", "scenedetect", "worldline.curate.examine"]


@dataclass(frozen=True)
class Caps:
    """What one file may use. Its time grows with its bytes, not with what it claims to hold."""

    memory: int = 4 << 30  # bytes of data
    seconds: float = 60.0  # of a processor
    seconds_per_megabyte: float = 20.0

    def time(self, size: int) -> float:
        """Processor seconds for a file of `size` bytes."""
        return self.seconds + self.seconds_per_megabyte * size / 1e6


@dataclass(frozen=True)
class Task:
    """One call `work(*arguments)` that returns plain JSON types; `size` is that of its file in bytes."""

    key: str
    arguments: tuple[Any, ...]
    size: int


@dataclass(frozen=True)
class Outcome:
    """What `work` returned, or why it did not; `fault` is "out of time", "out of memory" or "crashed"."""

    key: str
    value: Any = None
    fault: str = ""
    detail: str = ""


@dataclass
class _Running:
    task: Task
    process: Any
    attempt: int
    deadline: float
    timed_out: bool = False


def run(work: Callable[..., Any], tasks: Iterable[Task], workers: int, caps: Caps) -> Iterator[Outcome]:
    """Outcomes in the order in which they come; processes end with the iterator."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SERVER_IMPORTS)
    running: dict[Connection, _Running] = {}

    def start(task: Task, attempt: int) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, work, task.arguments, caps, task.size), daemon=True)
        process.start()
        sender.close()
        # A sleeping process uses no processor time, so the clock on the wall is limited too, more loosely.
        running[receiver] = _Running(task, process, attempt, time.monotonic() + 4 * caps.time(task.size) + 60)

    waiting = iter(tasks)
    try:
        while True:
            while len(running) < workers and (task := next(waiting, None)) is not None:
                start(task, 1)
            if not running:
                return
            for receiver in wait(list(running), timeout=1.0):
                assert isinstance(receiver, Connection)
                job = running.pop(receiver)
                outcome = _outcome(receiver, job)
                if outcome is None:
                    start(job.task, job.attempt + 1)
                else:
                    yield outcome
            for job in running.values():
                if time.monotonic() > job.deadline and not job.timed_out:
                    job.timed_out = True
                    job.process.kill()
    finally:
        for job in running.values():
            job.process.kill()
            job.process.join()


def _outcome(receiver: Connection, job: _Running) -> Outcome | None:
    """What came of a process that has answered or ended; None for one that is to be started again."""
    try:
        answer = json.loads(receiver.recv_bytes())
    except (EOFError, OSError):
        answer = None
    receiver.close()
    job.process.join()
    key, code = job.task.key, job.process.exitcode
    if answer is not None:
        return Outcome(key, **answer)
    if job.timed_out or code == -signal.SIGXCPU:
        return Outcome(key, None, "out of time", "used up what a file of its size may take")
    if job.attempt < ATTEMPTS:
        return None
    name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
    return Outcome(key, None, "crashed", f"{name}, {ATTEMPTS} times")


def _child(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...], caps: Caps, size: int) -> None:
    """Runs in the process of one file."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (caps.memory, caps.memory))
    limit = int(caps.time(size)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    os.nice(1)  # whoever waits for the results comes first
    keep_freed_memory()  # every frame makes what the one before it gave up
    try:
        answer = {"value": work(*arguments)}
    except MemoryError:
        answer = {"fault": "out of memory", "detail": f"needs more than {caps.memory >> 20} MiB"}
    sender.send_bytes(json.dumps(answer).encode())
