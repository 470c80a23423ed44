"""The process that does the work: it loads the model once, takes jobs, renews its claim on them while it computes, and
ends each of them once. Any number of engines share a table of jobs, on one machine or on many."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from sqlalchemy.exc import DBAPIError

from worldline.errors import UserError
from worldline.media.identity import SIGN_WITH
from worldline.serve.files import LATENTS, Done
from worldline.serve.jobs import LEASE, Job, Jobs
from worldline.serve.moderation import moderator, verdict
from worldline.serve.orders import Model, Order
from worldline.serve.refusals import from_user_error
from worldline.serve.settings import Settings
from worldline.serve.store import Store

LOOK = 0.1  # seconds between two looks for work
BEAT = 0.2  # seconds between two notes of progress
GLIMPSE = 1.0  # seconds between two previews
PATIENCE = 60.0  # seconds for which a database that does not answer is asked again
log = logging.getLogger("worldline.engine")


class Stopped(BaseException):
    """Raised at a step of work that nobody waits for any more; no handler of errors may take it for one."""


class Worker(Protocol):
    """What does the work of an order."""

    def do(self, order: Order, folder: Path, watch: Watch) -> Done:
        """The finished files, the measures of the video, and some of its frames. `folder` holds the order's inputs,
        and in LATENTS what an attempt before this one may have left."""

    def together(self, orders: Sequence[Order], folders: Sequence[Path], watch: Watch) -> Iterator[Done]:
        """The same of several orders of one kin."""

    def glimpse(self, index: int) -> np.ndarray | None:
        """A frame uint8 (H, W, 3) of what is in work."""


class Watch:
    """Over the jobs of one claim: notes their progress, renews the claim, and stops the work once none is left.

    It is called at every step. A thread renews the claim where steps are long.
    """

    def __init__(
        self, jobs: Jobs, claimed: Sequence[Job], worker: Worker, stopping: threading.Event, passes: int = 1
    ) -> None:
        self.jobs, self.claim, self.worker, self.passes = jobs, str(claimed[0].claim), worker, passes
        self.stopping = stopping  # of the engine
        self.names = [job.id for job in claimed]
        self.live = set(self.names)
        self.lock = threading.Lock()
        self.done = self.earlier = 0
        self.began: float | None = None  # when the first step was done: what came before was no step
        self.beaten = self.glimpsed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Notes a step; raises Stopped where nothing is left to do it for."""
        if done <= self.done:
            self.earlier += self.done  # the next of several passes
        self.done = done
        steps = max(total * self.passes, self.earlier + total)
        step, at = self.earlier + done, time.monotonic()
        self.began = self.began or at
        if at - self.beaten >= BEAT or done == total:
            left = round((at - self.began) / (step - 1) * (steps - step), 2) if step > 1 else None
            self.renew(step=step, steps=steps, left=left)
        self.check()
        if at - self.glimpsed >= GLIMPSE:
            self._glimpse()
            self.glimpsed = time.monotonic()

    def check(self) -> None:
        """Raises Stopped where nothing is left to do."""
        if self.stopping.is_set() or not self.live:
            raise Stopped

    def renew(self, **seen: Any) -> None:
        """Beats, and learns which jobs are still wanted. A database that does not answer is asked again later, until
        the claim must have ended."""
        with self.lock:
            try:
                self.live = self.jobs.beat(self.claim, **seen)
                self.beaten = time.monotonic()
            except DBAPIError:
                if time.monotonic() - self.beaten > LEASE:
                    self.live = set()

    def _glimpse(self) -> None:
        for index, name in enumerate(self.names):
            frame = self.worker.glimpse(index) if name in self.live else None
            if frame is not None:
                with suppress(DBAPIError):
                    self.jobs.show(name, self.claim, webp(frame))


def webp(frame: np.ndarray) -> bytes:
    """A frame uint8 (H, W, 3) as a small picture."""
    import io

    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((256, 256))
    held = io.BytesIO()
    picture.save(held, "WEBP", quality=70)
    return held.getvalue()


class Engine:
    """Takes jobs from the table until it is told to stop."""

    def __init__(
        self, settings: Settings, model: Model, worker: Worker, name: str, batch: int = 1, keep: float | None = None
    ) -> None:
        """`keep`: seconds for which finished files stay; None, for good. `batch`: jobs that are packed at most."""
        self.settings, self.model, self.worker, self.name = settings, model, worker, name
        self.batch, self.keep = batch, keep
        self.jobs, self.store = Jobs(settings.database_url), Store(settings.store_url)
        self.moderator = moderator(settings.moderation)
        self.scratch = settings.scratch / f"engine-{name}"
        self.latents = settings.scratch / "latents"  # of jobs, for whichever engine here goes on with them
        self.watch: Watch | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        """Returns when `stop` was called and the job in work is put back."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self.latents.mkdir(exist_ok=True)
        for left in self.latents.iterdir():
            if self._insist(lambda left=left: self.jobs.wanted(left.name)) != "":
                shutil.rmtree(left, ignore_errors=True)
        self._insist(lambda: self.jobs.release(self.name))  # what an engine of this name held when it died
        threading.Thread(target=self._beat, daemon=True).start()
        try:
            while not self.stopping.is_set():
                try:
                    claimed = self.jobs.claim(self.name, self.model.name, self.batch)
                except DBAPIError as error:
                    log.warning("database", extra={"reason": type(error).__name__})
                    self.stopping.wait(1.0)
                    continue
                if claimed:
                    self._work(claimed)
                else:
                    self.stopping.wait(LOOK)
        finally:
            self.put_back()

    def stop(self) -> None:
        """Asks it to stop at the next step; what it had begun is put back."""
        self.stopping.set()

    def put_back(self) -> None:
        """Leaves nothing that waits for this engine."""
        with suppress(DBAPIError):
            self.jobs.release(self.name, blameless=True)
            self.jobs.gone(self.name)

    def _beat(self) -> None:
        while True:
            with suppress(DBAPIError):
                self.jobs.seen(self.name, self.model.name)
            watch = self.watch
            if watch is not None and time.monotonic() - watch.beaten > LEASE / 4:
                watch.renew()
            if self.stopping.wait(LEASE / 4):
                return

    def _work(self, claimed: list[Job]) -> None:
        orders = [Order.read(job.work) for job in claimed]
        self.watch = watch = Watch(self.jobs, claimed, self.worker, self.stopping, orders[0].passes)
        log.info("taken", extra={"jobs": [job.id for job in claimed], "verb": orders[0].verb})
        try:
            with ExitStack() as stack:
                place: dict[str, Any] = {"dir": self.scratch, "ignore_cleanup_errors": True}
                folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(**place))) for _ in claimed]
                self._do(claimed, orders, folders, watch)
        except Stopped:
            log.info("stopped", extra={"jobs": [job.id for job in claimed]})
            for job in claimed:
                if self._insist(lambda job=job: self.jobs.wanted(job.id)) != "":  # else it is to be done again
                    self._clear(job)
        except Exception as error:
            self._failed(claimed, error)
        self.watch = None

    def _do(self, claimed: list[Job], orders: list[Order], folders: list[Path], watch: Watch) -> None:
        for job, order, folder in zip(claimed, orders, folders, strict=True):
            (self.latents / job.id).mkdir(exist_ok=True)
            (folder / LATENTS).symlink_to(self.latents / job.id)
            for name in order.inputs:
                self.store.fetch(f"{job.id}/inputs/{name}", folder / name)
        if len(claimed) == 1:
            made = iter([self.worker.do(orders[0], folders[0], watch)])
        else:
            made = self.worker.together(orders, folders, watch)
        for job, (files, facts, shown) in zip(claimed, made, strict=True):
            self._publish(job, files, facts, shown)

    def _publish(self, job: Job, files: Sequence[Path], facts: dict[str, Any], shown: np.ndarray) -> None:
        """Ends a job well: its files in the store, under a name that no other attempt has, then its row."""
        reason = verdict(lambda: self.moderator.frames(shown))
        if reason is not None:
            self._end(job, "moderation_blocked", reason)
            return
        folder, claim = f"{job.id}/{job.claim}", str(job.claim)
        try:
            for file in files:
                self.store.put(file, f"{folder}/{file.name}")
        except BaseException:
            self.store.remove(folder)
            raise
        if self._insist(lambda: self.jobs.complete(job.id, claim, folder, facts, self.keep)):
            self._clear(job)
            log.info("completed", extra={"job": job.id})
        else:  # cancelled or deleted meanwhile
            self.store.remove(job.id if self.jobs.wanted(job.id) is None else folder)

    def _failed(self, claimed: Sequence[Job], error: Exception) -> None:
        code, message = reason_of(error)
        log.warning("failed", extra={"jobs": [job.id for job in claimed], "code": code}, exc_info=error)
        for job in claimed:
            self._end(job, code, message)

    def _end(self, job: Job, code: str, message: str) -> None:
        if self._insist(lambda: self.jobs.fail(job.id, str(job.claim), code, message)):
            self._clear(job)

    def _clear(self, job: Job) -> None:
        """Removes what only its making needed; what a store does not give up now is swept later."""
        shutil.rmtree(self.latents / job.id, ignore_errors=True)
        try:
            self.store.remove(f"{job.id}/inputs")
        except Exception as error:  # each kind of store has its own
            log.warning("not removed", extra={"job": job.id, "reason": type(error).__name__})

    def _insist(self, change: Any) -> Any:
        """Asks a database until it answers, for as long as that may help."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return change()
            except DBAPIError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)


def reason_of(error: Exception) -> tuple[str, str]:
    """A code and a line for the client: our own words for what we know, no more than a name for the rest."""
    text = str(error)
    if isinstance(error, UserError):
        if SIGN_WITH in text or "cannot be signed" in text:  # a certificate that ended meanwhile
            return "signing_error", "the server could not sign the video"
        full = "No space left" in text or "File too large" in text or "quota" in text.lower()
        return (
            ("storage_full", "the server has no space left for the video")
            if full
            else ("invalid_request", from_user_error(error).message)
        )
    if isinstance(error, OSError):
        return "storage_error", f"the server could not write or read a file ({error.strerror or type(error).__name__})"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text):
        return "out_of_memory", "not enough memory; ask for a smaller size or fewer seconds"
    return "engine_error", f"the engine failed ({type(error).__name__})"


@contextmanager
def named(folder: Path) -> Iterator[str]:
    """The name of an engine, which lasts from one start to the next and which no other that lives has.

    So an engine that starts knows that whatever is held under its name was lost.
    """
    for number in range(1000):
        with (folder / f"{number}").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            file.seek(0)
            name = file.read().strip()
            if not name:
                name = secrets.token_hex(8)
                file.write(name)
                file.flush()
            yield name
            return
    raise UserError(f"--data-dir {folder.parent}: a thousand engines run here already")


def run(
    settings: Settings,
    model: Model,
    worker: Worker,
    batch: int = 1,
    keep: float | None = None,
    parent: int | None = None,
) -> None:
    """One engine until SIGTERM or SIGINT, or until the process `parent` is gone."""
    with named(settings.data_dir / "engines") as name:
        engine = Engine(settings, model, worker, name, batch, keep)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: engine.stop())
        if parent is not None:
            threading.Thread(target=_follow, args=(engine, parent), daemon=True).start()
        log.info("ready", extra={"engine": name, "model": model.name})
        engine.run()


def _follow(engine: Engine, parent: int) -> NoReturn:
    """Ends with the server that started it, also in the middle of a step."""
    while os.getppid() == parent:
        time.sleep(0.3)
    engine.put_back()
    os._exit(1)
