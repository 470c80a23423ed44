"""Keeps house beside the API: starts the engines and starts them again, and removes files that nobody wants."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy.exc import DBAPIError

from worldline.serve.jobs import Jobs, born
from worldline.serve.settings import DATABASE, KEYS, Settings
from worldline.serve.store import Store

SWEEP = 30.0  # seconds between two rounds
GRACE = 3600.0  # seconds before what no row names is taken for lost: a request may still be writing it
CALM = 10.0  # seconds for which an engine must live to be started again at once
GOODBYE = 15.0  # seconds that an engine has to put back its work
log = logging.getLogger("worldline.keeper")


class Engines:
    """Processes that run `command`, started again whenever they end. They learn of the database from their environment,
    which no other user can read."""

    def __init__(self, command: Sequence[str], count: int, database_url: str) -> None:
        self.command, self.database_url = list(command), database_url
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._keep, args=(i,), daemon=True) for i in range(count)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Ends them; what they had begun is put back."""
        self.stopping.set()
        for process in self.processes:
            if process is not None:
                process.terminate()
        for process in self.processes:
            if process is None:
                continue
            try:
                process.wait(GOODBYE)
            except subprocess.TimeoutExpired:
                process.kill()  # in the middle of a long step; its claim runs out
                process.wait()
        for thread in self.threads:
            thread.join()

    def _keep(self, index: int) -> None:
        # The keys of clients are none of an engine's business.
        environment = {name: value for name, value in os.environ.items() if name != KEYS}
        environment[DATABASE] = self.database_url
        wait = 0.0
        while not self.stopping.wait(wait):
            began = time.monotonic()
            self.processes[index] = process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, env=environment)
            if self.stopping.is_set():
                process.terminate()
            code = process.wait()
            if not self.stopping.is_set():
                log.warning("engine ended", extra={"code": code})
            wait = 0.1 if time.monotonic() - began > CALM else min(10.0, 2 * wait + 0.1)


class Housekeeping:
    """Rounds through store and scratch folder, in a thread."""

    def __init__(self, settings: Settings, jobs: Jobs, store: Store) -> None:
        self.settings, self.jobs, self.store = settings, jobs, store
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.stopping.wait(SWEEP):
            with suppress(DBAPIError, OSError):
                self.round()

    def round(self, grace: float = GRACE) -> None:
        """Removes files that have expired, that belong to no job, or that a job no longer needs."""
        for folder in self.jobs.expire():
            self.store.remove(folder)
        for name in self.store.names():
            made = born(name)
            if made is None or time.time() - made < grace:
                continue
            wanted = self.jobs.wanted(name)
            if wanted is None:
                self.store.remove(name)
            elif wanted:
                for part in self.store.names(name):
                    if f"{name}/{part}" != wanted:
                        self.store.remove(f"{name}/{part}")
        for left in self.settings.scratch.glob("request-*"):
            if time.time() - left.stat().st_mtime >= grace:
                shutil.rmtree(left, ignore_errors=True)
