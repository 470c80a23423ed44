"""What curation costs per core: probe, decode, each stage and the whole, beside a plain PyAV loop with the same stages.

    python -m benchmarks.curate FILM... [--seconds 40] [--pairs 3] [--json]

The plain loop is what one writes first: for every question it opens the film again, decodes it, turns each frame into
full RGB and asks the same stage. A second rival decodes once, in full. Processor times are taken in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from worldline.curate import duplicates
from worldline.curate.examine import SHORT_SIDE, examine
from worldline.curate.plan import CuratePlan
from worldline.curate.stage import CLOSE, LOOKS, Look
from worldline.media.scan import Scan


def cost(work: Callable[[], Any]) -> float:
    """Processor seconds of one call, of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def excerpt(film: Path, seconds: float, folder: Path) -> Path:
    """The first seconds of a film, its packets copied."""
    target = folder / f"{film.stem}.mp4"
    with av.open(str(film)) as old, av.open(str(target), "w") as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        for packet in old.demux(source):
            if packet.dts is None or float(packet.dts * packet.time_base) > seconds:
                continue
            packet.stream = stream
            new.mux(packet)
    return target


def frames(film: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame in full RGB, as a plain loop has it."""
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            yield float(frame.time or 0.0), frame.to_ndarray(format="bgr24")


def plain(film: Path, plan: CuratePlan) -> None:
    """One pass over the film for every question."""
    assert plan.shots
    finder = plan.shots.begin(24.0)
    for _, picture in frames(film):
        finder.see(small(picture))
    finder.ranges()
    for stage in plan.stages:
        notes: list[Any] = []
        before, turn = None, -1
        for index, (seconds, picture) in enumerate(frames(film)):
            due = int(seconds * LOOKS + 1e-6)
            if due == turn:
                continue
            close, turn = due // CLOSE > turn // CLOSE, due
            grey = cv2.cvtColor(small(picture), cv2.COLOR_BGR2GRAY)
            size = picture.shape[1], picture.shape[0]
            luma = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
            look = Look(
                index, seconds, picture, grey, before, 1 / LOOKS, size, lambda luma=luma: luma, partial(small, picture)
            )
            if close or not stage.close:
                notes.append(stage.see(look))
            before = grey
        stage.judge(notes, (1, 1) if not notes else size)
    for _, picture in frames(film):
        duplicates.tiny(small(picture))


def small(picture: np.ndarray, short_side: int = SHORT_SIDE) -> np.ndarray:
    scale = min(1.0, short_side / min(picture.shape[:2]))
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def one_pass(film: Path, plan: CuratePlan) -> None:
    """The plain loop of somebody who decodes once but in full: the fairest simple rival."""
    assert plan.shots
    finder = plan.shots.begin(24.0)
    before, turn = None, -1
    for index, (seconds, picture) in enumerate(frames(film)):
        reduced = small(picture)
        finder.see(reduced)
        duplicates.tiny(reduced)
        due = int(seconds * LOOKS + 1e-6)
        if due == turn:
            continue
        close, turn = due // CLOSE > turn // CLOSE, due
        grey, luma = cv2.cvtColor(reduced, cv2.COLOR_BGR2GRAY), cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        size = picture.shape[1], picture.shape[0]
        look = Look(
            index, seconds, reduced, grey, before, 1 / LOOKS, size, lambda luma=luma: luma, partial(small, picture)
        )
        for stage in plan.stages:
            if close or not stage.close:
                stage.see(look)
        before = grey
    finder.ranges()


def scan(film: Path) -> None:
    with Scan(film, SHORT_SIDE) as opened:
        for _ in opened:
            pass


def header(film: Path) -> None:
    with Scan(film, SHORT_SIDE):
        pass


def parts(plan: CuratePlan) -> dict[str, CuratePlan]:
    """Plans that hold one stage each."""
    bare = replace(plan, shots=None, stages=(), duplicates=None)
    alone = {stage.name: replace(bare, stages=(stage,)) for stage in plan.stages}
    return {"shots": replace(bare, shots=plan.shots), **alone, "prints": replace(bare, duplicates=plan.duplicates)}


def measure(film: Path, pairs: int) -> dict[str, Any]:
    """Milliseconds a frame of every part, and the ratios of interleaved pairs."""
    plan = CuratePlan()
    with Scan(film, SHORT_SIDE) as opened:
        count = sum(1 for _ in opened)
    bare = cost(lambda: examine(film, "film", replace(plan, shots=None, stages=(), duplicates=None)))
    out: dict[str, Any] = {"frames": count, "bytes": film.stat().st_size}
    out["header_ms"] = 1000 * cost(lambda: header(film))
    out["decode_small_ms"] = 1000 * cost(lambda: scan(film)) / count
    for name, part in parts(plan).items():
        out[f"{name}_ms"] = 1000 * max(0.0, cost(lambda part=part: examine(film, "film", part)) - bare) / count
    ratios, single, ours = [], [], []
    for _ in range(pairs):
        whole = cost(lambda: examine(film, "film", plan))
        ratios.append(cost(lambda: plain(film, plan)) / whole)
        single.append(cost(lambda: one_pass(film, plan)) / whole)
        ours.append(whole)
    clips = len(examine(film, "film", plan))
    whole = statistics.median(ours)
    out |= {"whole_ms": 1000 * whole / count, "clips_per_second": clips / whole}
    out |= {"megabytes_per_second": out["bytes"] / 1e6 / whole, "clips": clips}
    return out | {"plain_over_ours": statistics.median(ratios), "single_pass_over_ours": statistics.median(single)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each film")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for film in args.films:
            results[film.name] = measure(excerpt(film, args.seconds, Path(folder)), args.pairs)
    if args.json:
        print(json.dumps(results, indent=2))
        return
    for name, row in results.items():
        print(name)
        for key, value in row.items():
            print(f"  {key:<24}{value:10.3f}" if isinstance(value, float) else f"  {key:<24}{value:10d}")


if __name__ == "__main__":
    main()
