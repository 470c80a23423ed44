"""How quick the server stays while it computes: status requests beside a job that denoises, memory when idle, and the
time from a start to the first answer.

    python -m benchmarks.serve --seconds 30
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import psutil

RATE = 50  # requests a second
PROMPT = "a red ball rolls to the right"


@contextmanager
def server(folder: Path, *more: str) -> Iterator[tuple[httpx2.Client, subprocess.Popen[bytes], float]]:
    """A client of `worldline serve`, its process, and the seconds until it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "worldline.cli", "serve", "--port", str(port), "--data-dir", str(folder), *more]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
    try:
        while True:
            try:
                client.get("/readyz")
                break
            except httpx2.TransportError:
                time.sleep(0.01)
        yield client, process, time.perf_counter() - began
    finally:
        client.close()
        process.terminate()
        process.wait()


def status_times(client: httpx2.Client, name: str, seconds: float) -> np.ndarray:
    """Milliseconds (N,) of status requests at an even rate."""
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        client.get(f"/v1/videos/{name}").raise_for_status()
        took = time.perf_counter() - began
        times.append(1000 * took)
        time.sleep(max(0.0, 1 / RATE - took))
    return np.array(times)


def figures(times: np.ndarray) -> dict[str, float]:
    """p50, p95, p99 and the longest in milliseconds, and how many there were."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {
        "n": len(times),
        "p50": round(p50, 1),
        "p95": round(p95, 1),
        "p99": round(p99, 1),
        "max": round(times.max(), 1),
    }


def memory(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Megabytes that the API and its engines hold for themselves (USS)."""
    api = psutil.Process(process.pid)
    held = {"api": api.memory_full_info().uss, "engine": sum(one.memory_full_info().uss for one in api.children())}
    return {name: round(size / 1e6, 1) for name, size in held.items()}


def measure(seconds: float) -> dict[str, object]:
    told: dict[str, object] = {"cores": os.cpu_count(), "load before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as place:
        with server(Path(place), "--engines", "0") as (client, process, ready):
            told["first start to ready, s"] = round(ready, 2)
            name = client.post("/v1/videos", json={"prompt": PROMPT}).json()["id"]
            told["idle API alone, MB"] = memory(process)["api"]
            told["status while idle, ms"] = figures(status_times(client, name, seconds))
        again, work = [], []
        for _ in range(5):
            with server(Path(place), "--engines", "0") as (_, process, ready):
                again.append(round(ready, 2))
                work.append(round(sum(psutil.Process(process.pid).cpu_times()[:2]), 2))
        told |= {"restart to ready, s": sorted(again), "of it on a core, s": sorted(work)}
        with server(Path(place)) as (client, process, _):
            while client.get(f"/v1/videos/{name}").json()["status"] != "completed":
                time.sleep(0.1)
            told["idle with a loaded model, MB"] = memory(process)
            # As long as it takes: what is measured ends before it does.
            long = {"prompt": PROMPT, "size": "128x128", "num_frames": 33, "num_inference_steps": 1000}
            name = client.post("/v1/videos", json=long).json()["id"]
            while client.get(f"/v1/videos/{name}").json()["worldline"]["step"] == 0:
                time.sleep(0.1)
            told["status while a job denoises, ms"] = figures(status_times(client, name, seconds))
            video = client.get(f"/v1/videos/{name}").json()
            told["steps meanwhile"] = video["worldline"]["step"]
            began = time.perf_counter()
            client.post(f"/v1/videos/{name}/cancel")
            quick = client.post("/v1/videos", json={"prompt": PROMPT, "num_inference_steps": 1}).json()["id"]
            while client.get(f"/v1/videos/{quick}").json()["status"] == "queued":
                time.sleep(0.01)
            told["from a cancel to the next job, s"] = round(time.perf_counter() - began, 2)
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each series of requests")
    print(json.dumps(measure(parser.parse_args().seconds), indent=2))
