"""How long each editing verb takes beside `generate`, in turns: the median ratio over several rounds.

    python -m benchmarks.verbs [--model DIR] [--rounds 5]

Each verb works on a world's clip of the model's own size, as `worldline eval verbs` gives it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from worldline.eval.verbs import TRIALS, sample_cases
from worldline.generate import edit
from worldline.generate.load import load


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; the shipped model unless given")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pipeline = load(args.model)
    size = pipeline.defaults.height, pipeline.defaults.width
    case = sample_cases(2, 0)[0]
    trials = {verb: make(case, size) for verb, make in TRIALS.items()}
    pipeline.generate(case.prompt)  # the first run is slower
    seconds: dict[str, list[float]] = {verb: [] for verb in ("generate", *trials)}
    for _ in range(args.rounds):
        seconds["generate"].append(timed(lambda: pipeline.generate(case.prompt)))
        for verb, trial in trials.items():
            work = getattr(edit, verb)
            seconds[verb].append(timed(lambda: work(pipeline, *trial.arguments, **trial.settings)))  # noqa: B023
    plain = statistics.median(seconds["generate"])
    print(f"{'generate':12} {plain:.2f} s for {pipeline.defaults.frames} frames")
    for verb, trial in trials.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[verb], seconds["generate"], strict=True))
        painted = ~np.broadcast_to(trial.known, trial.truth.shape[:3])
        print(f"{verb:12} {ratio:.2f} x generate, {int(painted.any((1, 2)).sum())} frames painted")


if __name__ == "__main__":
    main()
