"""Kills servers and engines at random moments while jobs come in, and counts what became of every one.

python -m tests.serve.crash --jobs 200 --kills 40
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

from tests.serve.served import LIMIT
from worldline.media.read import read_video
from worldline.serve.jobs import open_database

AUDIT = """
CREATE TABLE endings (id TEXT, status TEXT);
CREATE TRIGGER ended AFTER UPDATE OF status ON jobs WHEN NEW.status IN ('completed', 'failed')
BEGIN INSERT INTO endings VALUES (NEW.id, NEW.status); END;
"""


class Machines:
    """A server and its engines, each a process that can be killed and is started again."""

    def __init__(self, folder: Path, engines: int, pause: float) -> None:
        self.folder, self.log = folder, (folder / "log").open("ab")
        self.database = f"sqlite:///{folder / 'jobs.sqlite'}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        place = ["--data-dir", str(folder), "--database-url", self.database]
        self.commands = {
            "api": ["-m", "worldline.cli", "serve", "--engines", "0", "--port", str(self.port), *place],
            **{f"engine-{i}": ["-m", "tests.serve.fake", str(folder), self.database, "4", str(pause)]
               for i in range(engines)},
        }  # fmt: skip
        self.running = {name: self._start(name) for name in self.commands}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *self.commands[name]], stderr=self.log, stdin=subprocess.DEVNULL)

    def kill(self, names: list[str]) -> None:
        """kill -9, then a new start."""
        for name in names:
            self.running[name].send_signal(signal.SIGKILL)
        for name in names:
            self.running[name].wait(LIMIT)
            self.running[name] = self._start(name)

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(LIMIT)
        self.log.close()


def crash(
    folder: Path,
    jobs: int,
    kills: int,
    engines: int = 2,
    seed: int = 0,
    pause: float = 0.02,
    apart: float = 1.0,
    limit: float = 1800.0,
) -> dict[str, Any]:
    """What became of `jobs` accepted jobs through `kills` kills; what takes longer than `limit` seconds never ends."""
    end = time.monotonic() + limit
    rng = random.Random(seed)
    open_database(f"sqlite:///{folder / 'jobs.sqlite'}").dispose()
    with sqlite3.connect(folder / "jobs.sqlite") as audit:
        audit.executescript(AUDIT)
    machines = Machines(folder, engines, pause)
    client = httpx2.Client(base_url=f"http://127.0.0.1:{machines.port}/v1", timeout=30)
    accepted: list[str] = []
    partial: list[str] = []

    def ask(method: str, path: str, **more: Any) -> httpx2.Response | None:
        try:
            return client.request(method, path, **more)
        except httpx2.TransportError:  # the server is dead just now
            time.sleep(0.1)
            return None

    def send() -> None:
        while len(accepted) < jobs and time.monotonic() < end:
            answer = ask("POST", "/videos", json={"prompt": "a red ball", "seed": len(accepted)})
            if answer is not None and answer.status_code == 200:
                accepted.append(answer.json()["id"])

    def read() -> None:
        """Fetches what is there, also while it appears: it is whole or not at all."""
        while sender.is_alive():
            for name in list(accepted[-8:]):
                answer = ask("GET", f"/videos/{name}/content")
                if answer is not None and answer.status_code == 200 and not whole(answer.content, folder):
                    partial.append(name)
            time.sleep(0.05)

    sender, reader = threading.Thread(target=send), threading.Thread(target=read)
    for thread in (sender, reader):
        thread.start()
    killed: Counter[str] = Counter()
    while sum(killed.values()) < kills:
        time.sleep(rng.uniform(0.0, 2 * apart))
        what = rng.choice(["api", "engine", "both"])
        names = [name for name in machines.running if name.startswith("engine")]
        chosen = ["api"] * (what != "engine") + [rng.choice(names)] * (what != "api")
        machines.kill(chosen)
        killed[what] += 1
    sender.join(limit)
    reader.join(LIMIT)
    states: dict[str, str] = {}
    for name in accepted:
        while states.get(name) not in ("completed", "failed") and time.monotonic() < end:
            answer = ask("GET", f"/videos/{name}")
            states[name] = "lost" if answer is not None and answer.status_code == 404 else "alive"
            if answer is not None and answer.status_code == 200:
                states[name] = answer.json()["status"]
            if states[name] == "lost":
                break
            time.sleep(0.01)
    for name, state in states.items():
        content = ask("GET", f"/videos/{name}/content") if state == "completed" else None
        if state == "completed" and (content is None or not whole(content.content, folder)):
            partial.append(name)
    machines.stop()
    client.close()
    with sqlite3.connect(folder / "jobs.sqlite") as audit:
        endings = Counter(name for (name,) in audit.execute("SELECT id FROM endings"))
        alive = audit.execute("SELECT count(*) FROM jobs WHERE status IN ('queued', 'in_progress')").fetchone()[0]
        again = audit.execute("SELECT count(*) FROM jobs WHERE attempts > 1").fetchone()[0]
    return {
        "accepted": len(accepted),
        "killed": dict(killed),
        "lost": sum(state == "lost" for state in states.values()),
        "ended twice": sum(count > 1 for count in endings.values()),
        "never ended": sum(not endings[name] for name in accepted) + alive,
        "partial": len(partial),
        "completed": sum(state == "completed" for state in states.values()),
        "failed": sum(state == "failed" for state in states.values()),
        "taken more than once": again,
    }


def whole(data: bytes, folder: Path) -> bool:
    """Whether it is a video with all of its frames."""
    file = folder / f"{threading.get_ident()}.mp4"
    file.write_bytes(data)
    try:
        return len(read_video(file).frames) == 17
    except ValueError:
        return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds of a step; a job has four")
    parser.add_argument("--apart", type=float, default=2.0, help="seconds between two kills, on average")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as place:
        print(
            json.dumps(
                crash(Path(place), args.jobs, args.kills, seed=args.seed, pause=args.pause, apart=args.apart), indent=2
            )
        )
