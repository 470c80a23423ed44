"""Long video by every plan: is the thing still the same at the end, what drifts, how long and how much memory?

    python -m benchmarks.long [--model DIR] [--seconds 60] [--n 4] [--plans sliding,long-range,hierarchy]

Every plan runs in its own process, which writes its videos to a file frame by frame; a run of `--short` seconds tells
what memory the length costs. The true worlds stand beside as the ceiling.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from worldline.eval.continuity import colour_drift, distances
from worldline.eval.physics import size_drift
from worldline.eval.report import Rate
from worldline.eval.verbs import same_thing, sample_cases
from worldline.eval.worlds import Case
from worldline.generate.load import load
from worldline.media.preview import contact_sheet
from worldline.media.write import write_image
from worldline.shapes import frames_for
from worldline.worlds.render import render

FPS = 16


def make(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Writes a file of frames for every case; wall seconds of each and the peak resident memory in MB."""
    pipeline, took = load(args.model), 0.0
    for index, case in enumerate(sample_cases(max(2, args.n), args.seed)[: args.n]):
        request = pipeline.request(case.prompt, seconds=args.seconds, seed=args.seed + index)
        began = time.perf_counter()
        with (folder / f"{index}.raw").open("wb") as file:
            for frame in pipeline.reel.stretch(request, how=args.one):
                file.write(frame.tobytes())
        took += time.perf_counter() - began
    return {"seconds": took / args.n, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def child(args: argparse.Namespace, how: str, seconds: float, n: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.long", "--one", how, "--seconds", str(seconds), "--n", str(n)]
    command += ["--seed", str(args.seed), "--folder", str(folder)] + (["--model", args.model] if args.model else [])
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def judged(videos: list[np.ndarray], truths: list[np.ndarray], cases: list[Case]) -> str:
    """What is seen of the videos of one plan."""
    same = Rate(sum(same_thing(v, c.scene) for v, c in zip(videos, cases, strict=True)), len(cases))
    colour = np.median([colour_drift(video) for video in videos])
    sizes = [abs(size_drift(v, FPS) - size_drift(t, FPS)) for v, t in zip(videos, truths, strict=True)]
    steps = [distances(video) for video in videos]
    jump = np.median([step.max() / max(float(np.median(step)), 0.5) for step in steps])
    return (f"same at the end {same} %; colour drift {colour:.1f} levels; size drift {100 * np.nanmedian(sizes):.2f} "
            f"% a second; largest step {jump:.1f} x the median")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; the shipped model unless given")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--short", type=float, default=4.0, help="the run whose memory is compared")
    parser.add_argument("--n", type=int, default=4, help="worlds per plan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plans", default="sliding,long-range,hierarchy")
    parser.add_argument("--sheet", default=None, help="contact sheet, a row per plan and world")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)  # a child's plan
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(make(args, args.folder)))
        return
    cases = sample_cases(max(2, args.n), args.seed)[: args.n]
    truths = [render(case.scene, frames_for(args.seconds, FPS)).frames for case in cases]
    print(f"{'the true worlds':16} {judged(truths, truths, cases)}")
    clips, labels = [], []
    for how in args.plans.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            short = child(args, how, args.short, 1, Path(scratch))
            found = child(args, how, args.seconds, args.n, Path(scratch))
            files = [Path(scratch) / f"{index}.raw" for index in range(args.n)]
            videos = [np.fromfile(file, np.uint8).reshape(truths[0].shape) for file in files]
        memory = (
            f"{found['peak_mb']:.0f} MB, {100 * (found['peak_mb'] / short['peak_mb'] - 1):+.1f} % on {args.short:g} s"
        )
        print(f"{how:16} {judged(videos, truths, cases)}; {found['seconds']:.0f} s; {memory}", flush=True)
        clips += videos
        labels += [f"{how}: {case.prompt}" for case in cases]
    if args.sheet:
        write_image(args.sheet, contact_sheet(clips, labels, columns_frames=12, scale=1))


if __name__ == "__main__":
    main()
