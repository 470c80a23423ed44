"""Kills workers of Ray at random while it curates, and holds the manifest against that of the local engine.

    python -m tests.curate.kill [--kills 20] [--films 10] [--seed 0]

Exit code 1 where the bytes differ. `tests/curate/test_ray.py` does the same with fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from tests.curate.films import scene, write_film

LIMIT = 900.0  # seconds after which a run counts as hung


def footage(folder: Path, films: int) -> Path:
    """Small films of two shots each; every third is a copy of the one before."""
    folder.mkdir()
    for i in range(films):
        seed = 2 * (i - (i % 3 == 2))
        write_film(folder / f"{i:02}.mp4", np.concatenate([scene(seed, 26), scene(seed + 1, 26)]))
    return folder


def curated(films: Path, out: Path, engine: str, kills: int = 0, seed: int = 0) -> tuple[str, int]:
    """The manifest's SHA-256 of a run of the command line whose workers are killed, and how many were."""
    command = [sys.executable, "-m", "worldline.cli", "curate", str(films), "--out", str(out), "--engine", engine]
    run = subprocess.Popen(
        [*command, "--workers", "2", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    rng, killed, began = np.random.default_rng(seed), 0, time.monotonic()
    try:
        while run.poll() is None and time.monotonic() - began < LIMIT:
            time.sleep(0.05)
            workers = _workers(run.pid) if killed < kills else []
            if workers and rng.random() < 0.5:
                os.kill(int(rng.choice(workers)), signal.SIGKILL)
                killed += 1
        said, complaint = run.communicate(timeout=5 if run.poll() is None else None)
    finally:
        for process in [psutil.Process(run.pid)] if run.poll() is None else []:
            for each in [*process.children(recursive=True), process]:
                each.kill()
    if run.returncode:
        raise RuntimeError(f"curate ended with {run.returncode}: {complaint[-2000:]}")
    return json.loads(said)["sha256"], killed


def _workers(pid: int) -> list[int]:
    """Ray's worker processes that are at a task of ours."""
    try:
        found = []
        for process in psutil.Process(pid).children(recursive=True):
            line = " ".join(process.cmdline()[:1])
            if line.startswith("ray::") and "IDLE" not in line and "Map" in line:
                found.append(process.pid)
        return found
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = footage(Path(folder) / "films", args.films)
        began = time.monotonic()
        expected, _ = curated(films, Path(folder) / "local", "local")
        middle = time.monotonic()
        found, killed = curated(films, Path(folder) / "ray", "ray", args.kills, args.seed)
        seconds = middle - began, time.monotonic() - middle
    same = "the same bytes" if found == expected else "OTHER BYTES"
    print(f"local {seconds[0]:.0f} s, Ray with {killed} workers killed {seconds[1]:.0f} s: {same}")
    sys.exit(found != expected)


if __name__ == "__main__":
    main()
