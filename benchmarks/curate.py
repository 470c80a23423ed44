"""What curation costs per core: probe, decode, each stage and the whole, beside plain PyAV loops that decide the same.

    python -m benchmarks.curate FILM... [--seconds 40] [--pairs 3] [--json]

The plain loop is what one writes who knows the libraries and wants these decisions. It opens a film once, turns every
frame into full-size BGR (`frame.to_ndarray`) and asks one function per question, each of which takes the frame and
makes of it what it needs with the usual calls: `cv2.resize` to the size that the question needs (ours), PySceneDetect's
`AdaptiveDetector`, OpenCV's DIS flow, blurs and means. Which frames are asked what is ours too: all of them for shots
and prints, 8 a second for exposure and motion, 2 a second for bars and sharpness. Thresholds and the rules that make
decisions of what was noted are the same code on both sides. The loop does not look for damage, which ours does.

Two rivals more: `sharing`, the same loop whose author makes the small picture and its grey only once a frame and hands
them to all functions; `again`, which opens and decodes the film once for each question.

All must come to the same decisions, or this fails: the same ranges, kept and dropped for the same reasons, figures
aside (pixels that are reduced in another way differ by a level or two). Processor times of one thread, taken in turns,
each in a process of its own that a warm one forks; ours keeps freed memory, as it does in curation. Ratios are medians
of pairs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from worldline.curate import duplicates
from worldline.curate.examine import SHORT_SIDE, Notes, clips_of, examine, file_hash
from worldline.curate.filters import LUMA_SIDE
from worldline.curate.plan import CuratePlan
from worldline.curate.shots import GREY, TINY, Finder
from worldline.curate.stage import CLOSE, LOOKS, Look
from worldline.media.scan import Scan
from worldline.nn.memory import keep_freed_memory
from worldline.records import Clip, Decision

Row = tuple[int, int, bool, str]  # first frame, end frame, kept, reason without figures


def cost(work: Callable[[], Any], kept: bool = True) -> float:
    """Processor seconds of one call in a process of its own, as curation gives one to every file; `kept` as there:
    whether freed memory stays with it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        if kept:
            keep_freed_memory()
        start = time.process_time()
        work()
        sender.send(time.process_time() - start)

    process = context.Process(target=run)
    process.start()
    sender.close()
    seconds = float(receiver.recv())
    process.join()
    return seconds


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


# ---- the plain loop --------------------------------------------------------------------------------


def frames(film: Path) -> Iterator[tuple[float, float, np.ndarray]]:
    """Every frame in full BGR, with its time and duration."""
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            yield float(frame.time), float(frame.duration * frame.time_base), frame.to_ndarray(format="bgr24")


def small(picture: np.ndarray, short_side: int = SHORT_SIDE) -> np.ndarray:
    scale = min(1.0, short_side / min(picture.shape[:2]))
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def grey_of(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)


def sharpness(luma: np.ndarray) -> float:
    """Crete et al. 2007, written down as it is printed."""
    scale = min(1.0, LUMA_SIDE / min(luma.shape))
    luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    smooth = cv2.GaussianBlur(luma, (3, 3), 0)
    found = []
    for axis, box in ((0, (1, 9)), (1, (9, 1))):
        sharp = np.abs(np.diff(smooth, axis=axis))
        soft = np.abs(np.diff(cv2.blur(smooth, box), axis=axis))
        found.append(float(np.maximum(sharp - soft, 0).sum() / max(float(sharp.sum()), 1.0)))
    return min(found)


def plain(film: Path, plan: CuratePlan, sharing: bool = False, ask: set[str] | None = None) -> list[Clip]:
    """The clips of a film. `sharing` makes what several questions need once; `ask` names questions, else all."""
    assert plan.shots
    with av.open(str(film)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
    detector = AdaptiveDetector(plan.shots.ratio, min_scene_len=0, min_content_val=plan.shots.change)
    finder = plan.shots.begin(rate)
    notes = Notes([], [], [[] for _ in plan.stages], [], [], False)
    times: list[float] = []
    before: np.ndarray | None = None
    turn, end, start, size = -1, 0.0, None, (0, 0)
    asked = ask or {"shots", "prints", *(stage.name for stage in plan.stages)}
    for seconds, duration, picture in frames(film):
        start = seconds if start is None else start
        times.append(seconds - start)
        end, size = times[-1] + duration, (picture.shape[1], picture.shape[0])
        reduced, luma = partial(small, picture), partial(grey_of, picture)
        grey = lambda reduced=reduced: grey_of(reduced())  # noqa: E731
        if sharing:
            reduced, luma, grey = cache(reduced), cache(luma), cache(grey)
        if "shots" in asked:
            see_cuts(finder, detector, reduced())
        if "prints" in asked:
            notes.tiny.append(duplicates.tiny(reduced()))
        due = int(times[-1] * LOOKS + 1e-6)
        if due == turn:
            continue
        close, turn = due // CLOSE > turn // CLOSE, due
        index = len(times) - 1
        notes.looks.append(index)
        notes.close += [index] if close else []
        for stage, seen in zip(plan.stages, notes.seen, strict=True):
            if stage.name not in asked or (stage.close and not close):
                continue
            if stage.name == "sharpness":
                seen.append(sharpness(luma()))
            elif stage.name == "bars":
                full = luma()
                seen.append((full.max(1), full.min(1), full.max(0), full.min(0)))
            elif stage.name == "exposure":
                seen.append((float(grey().mean()), float(grey().std())))
            else:
                now = grey()
                seen.append(stage.see(Look(index, times[-1], picture, now, before, 1 / LOOKS, size, luma, reduced)))
                before = now
    if ask:
        return []
    notes.ranges = finder.ranges()
    whole = Clip("", "film", file_hash(film), 0, 0, 0.0, 0.0, True, decisions=(Decision("probe", True),))
    return decided(clips_of(notes, np.append(times, end), size, plan, whole), plan)


def see_cuts(finder: Finder, detector: AdaptiveDetector, picture: np.ndarray) -> None:
    """What `Finder.see` notes, by the library's own detector."""
    found = detector.process_frame(FrameTimecode(finder.frames, finder.rate), picture)
    finder.cuts += [cut.frame_num for cut in found]
    finder.grey.append(cv2.resize(grey_of(picture), GREY, interpolation=cv2.INTER_AREA))
    finder.tiny.append(cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA).ravel())
    finder.frames += 1


def again(film: Path, plan: CuratePlan) -> None:
    """Every question opens the film anew."""
    for name in ("shots", "prints", *(stage.name for stage in plan.stages)):
        plain(film, plan, ask={name})


# ---- ours ------------------------------------------------------------------------------------------


def ours(film: Path, plan: CuratePlan) -> list[Clip]:
    return decided(examine(film, "film", plan), plan)


def decided(rows: list[tuple[Clip, duplicates.Print | None]], plan: CuratePlan) -> list[Clip]:
    """The clips after the search for near-duplicates among them."""
    assert plan.duplicates
    known = plan.duplicates.decide((clip, look) for clip, look in rows if look is not None)
    return [known.get((clip.id, clip.source), clip) for clip, _ in rows]


def decisions(clips: list[Clip]) -> list[Row]:
    return [(c.first_frame, c.end_frame, c.kept, re.sub(r"\d+(\.\d+)?", "#", c.reason)) for c in clips]


def compared(film: Path, one: list[Clip], other: list[Clip]) -> dict[str, float]:
    """The largest difference of every score, where all decisions are the same; ends the program where they are not."""
    for a, b in zip(decisions(one), decisions(other), strict=False):
        if a != b:
            sys.exit(f"{film.name}: other decisions: {a} here, {b} in the plain loop")
    if len(one) != len(other):
        sys.exit(f"{film.name}: {len(one)} clips here, {len(other)} in the plain loop")
    off: dict[str, float] = {}
    for a, b in zip(one, other, strict=True):
        for name in a.scores:
            off[name] = max(off.get(name, 0.0), abs(a.scores[name] - b.scores[name]))
    return off


def spent(film: Path, plan: CuratePlan) -> Counter[str]:
    """Processor seconds by stage, in one run of ours."""
    clock: Counter[str] = Counter()

    def timed(label: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.process_time()
            try:
                return work(*args)
            finally:
                clock[label] += time.process_time() - began

        return run

    with ExitStack() as stack:
        places = [("shots", Finder, "see"), ("shots", Finder, "ranges"), ("prints", duplicates, "tiny")]
        places += [("prints", duplicates, "print_of"), ("prints", duplicates.Duplicates, "decide")]
        places += [(stage.name, type(stage), "see") for stage in plan.stages]
        for label, owner, name in places:
            stack.enter_context(patch.object(owner, name, timed(label, getattr(owner, name))))
        ours(film, plan)
    return clock


def passed(film: Path, reduced: bool) -> int:
    """Frames of a film that is decoded and, if asked, reduced; nobody looks at them."""
    if reduced:
        with Scan(film, SHORT_SIDE) as scan:
            return sum(1 for _ in scan)
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "NONE"
        return sum(1 for _ in container.decode(video=0))


def header(film: Path) -> None:
    with Scan(film, SHORT_SIDE):
        pass


def measure(film: Path, pairs: int) -> dict[str, Any]:
    plan = CuratePlan()
    clips = ours(film, plan)  # warms up
    count, size = passed(film, False), film.stat().st_size / 1e6
    off = compared(film, clips, plain(film, plan))
    compared(film, clips, plain(film, plan, sharing=True))
    seconds = {"probe (header)": cost(lambda: header(film)), "decode": cost(lambda: passed(film, False))}
    seconds["decode and reduce"] = cost(lambda: passed(film, True))
    seconds |= dict(spent(film, plan))
    rivals: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(film, plan),
        "sharing": lambda: plain(film, plan, sharing=True),
        "again": lambda: again(film, plan),
    }
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    own = []
    for _ in range(pairs):
        for name, rival in rivals.items():
            own.append(cost(lambda: ours(film, plan)))
            ratios[name].append(cost(rival) / own[-1])
    seconds["whole"] = statistics.median(own)
    stages = {
        name: {"ms_a_frame": 1000 * s / count, "clips_a_second": len(clips) / s, "mb_a_second": size / s}
        for name, s in seconds.items()
    }
    return {
        "frames": count,
        "clips": len(clips),
        "kept": sum(clip.kept for clip in clips),
        "stages": stages,
        "times_as_long": {name: statistics.median(values) for name, values in ratios.items()},
        "scores_differ_by": off,
    }


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
        print(
            f"{name}: {row['frames']} frames, {row['clips']} clips, {row['kept']} kept; the same decisions everywhere"
        )
        for stage, rates in row["stages"].items():
            ms, clips, size = rates.values()
            print(f"  {stage:<20}{ms:8.3f} ms a frame{clips:10.1f} clips/s{size:9.2f} MB/s")
        print(
            "  "
            + ", ".join(f"{rival} takes {ratio:.2f} times as long" for rival, ratio in row["times_as_long"].items())
        )
        print("  scores differ by at most " + ", ".join(f"{n} {v:.2g}" for n, v in row["scores_differ_by"].items()))


if __name__ == "__main__":
    main()
