"""What borrowing between steps saves and costs: shares borrowed, time in turns, and how far the latents end from exact.

    python -m benchmarks.reuse [--limits 0.05,0.1,0.2,0.3] [--n 12] [--model FOLDER] [--json FILE]

For each limit: the share of the model's answers that were borrowed, time of exact over time with it (median of
prompts, each run both ways in turns), the error that `Reuse` reports, and the true one of the finished latents,
relative to exact. Prompts are those of held-out worlds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.generate.denoiser import reused
from worldline.generate.drawing import Drawing
from worldline.generate.load import load
from worldline.generate.pipeline import Pipeline
from worldline.worlds.captions import caption
from worldline.worlds.scene import sample_scene


def drawn(pipeline: Pipeline, prompt: str, seed: int, limit: float) -> tuple[float, Tensor]:
    """Seconds and latents of one video."""
    request = pipeline.request(prompt, seed=seed, reuse=limit)
    pipeline.room.prepare(request)
    began = time.perf_counter()
    (latents,) = pipeline.denoiser.sample([prompt], [seed], Drawing.of(request))
    return time.perf_counter() - began, latents


def measured(pipeline: Pipeline, prompts: list[str], limit: float) -> dict[str, Any]:
    """One row of the table."""
    ratios, errors, told = [], [], []
    for seed, prompt in enumerate(prompts):
        seconds, exact = drawn(pipeline, prompt, seed, 0.0)
        other, near = drawn(pipeline, prompt, seed, limit)
        told.append(reused(pipeline.denoiser.reuses))
        ratios.append(seconds / other)
        errors.append(float((near - exact).norm() / exact.norm()))
    return {
        "limit": limit,
        "borrowed": sum(row["borrowed"] for row in told) / sum(row["asked"] for row in told),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "reported": statistics.median(row.get("error", 0.0) for row in told),
        "error": statistics.median(errors),
        "worst": max(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", default="0.05,0.1,0.2,0.3")
    parser.add_argument("--n", type=int, default=12, help="prompts")
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = load(args.model)
    rngs = [np.random.default_rng([7, index]) for index in range(args.n)]
    prompts = [caption(sample_scene(rng, "heldout"), rng) for rng in rngs]
    drawn(pipeline, prompts[0], 0, 0.0)  # the first run warms up
    print("| limit | answers borrowed | exact / borrowing, time | error reported | latents off, median (worst) |")
    print("|---|---|---|---|---|")
    rows = []
    for limit in map(float, args.limits.split(",")):
        row = measured(pipeline, prompts, limit)
        rows.append(row)
        low, high = row["spread"]
        print(
            f"| {limit:g} | {row['borrowed']:.0%} | {row['ratio']:.2f} [{low:.2f}-{high:.2f}] "
            f"| {row['reported']:.1%} | {row['error']:.1%} ({row['worst']:.1%}) |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
