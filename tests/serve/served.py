"""A whole server inside the test: the API on a port of its own, and an engine whose worker paints but colours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import uvicorn

from tests.serve.fake import Fake
from worldline.serve.api import create_app
from worldline.serve.engine import Engine
from worldline.serve.jobs import Jobs
from worldline.serve.keeper import Housekeeping
from worldline.serve.orders import Model
from worldline.serve.settings import Limits, settings_of
from worldline.serve.store import Store

LIMIT = 120.0  # seconds after which a test has waited for long enough, on a busy machine too
T = TypeVar("T")


def until(found: Callable[[], T | None], limit: float = LIMIT) -> T:
    """What `found` returns once that is something true; raises AssertionError where it takes longer than `limit`."""
    end = time.monotonic() + limit
    while not (seen := found()):
        assert time.monotonic() < end, f"nothing after {limit:g} s"
        time.sleep(0.02)
    return seen


@dataclass
class Served:
    url: str
    client: httpx2.Client
    worker: Fake
    jobs: Jobs
    store: Store
    house: Housekeeping
    folder: Path

    def create(self, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/videos", json={"prompt": "a red ball", "seed": 1, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait(self, name: str) -> dict[str, Any]:
        """The video once it has ended."""

        def ended() -> dict[str, Any] | None:
            video = dict(self.client.get(f"/v1/videos/{name}").json())
            return video if video["status"] in ("completed", "failed") else None

        return until(ended)

    def working(self) -> None:
        """Waits for a worker that waits at its gate."""
        assert self.worker.waiting.wait(LIMIT)

    def finished(self, **fields: Any) -> dict[str, Any]:
        video = self.wait(self.create(**fields)["id"])
        assert video["status"] == "completed", video
        return video


@contextmanager
def serving(folder: Path, keys: str = "", engine: bool = True, batch: int = 1, **about: Any) -> Iterator[Served]:
    """A server with its data in `folder` until the block ends; `keys` with spaces between them."""
    file = folder / "keys"
    if keys:
        file.write_text("\n".join(keys.split()))
    about.setdefault("limits", Limits())
    settings = settings_of(folder / "data", keys=file if keys else None, **about)
    model, worker = Model(None, settings.limits), Fake()
    app = create_app(settings, model)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    threads = [threading.Thread(target=server.run)]
    engines = [Engine(settings, model, worker, "test", batch)] if engine else []
    threads += [threading.Thread(target=engine.run) for engine in engines]
    for thread in threads:
        thread.start()
    until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    headers = {"authorization": f"Bearer {keys.split()[0]}"} if keys else {}
    jobs, store = Jobs(settings.database_url), Store(settings.store_url)
    try:
        with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
            yield Served(url, client, worker, jobs, store, Housekeeping(settings, jobs, store), folder)
    finally:
        worker.gate.set()
        server.should_exit = True
        for one in engines:
            one.stop()
        for thread in threads:
            thread.join(LIMIT)
        for one in engines:
            one.jobs.engine.dispose()
        jobs.engine.dispose()
