"""Do native shapes frame better than fixed crops? Two models of equal compute, one trained on whole pictures of every
shape, one on square cuts out of them.

    python -m benchmarks.framing NATIVE CROPS [--n 96] [--sizes 64x64,96x64,64x96,80x64,112x64,64x112] [--plot out.png]

Of each model's videos of held-out prompts at every size: the share in which things stay wholly in the picture for nine
tenths of the frames (`eval.simulator`), and the share of what prompts ask for, attribute by attribute, that is right
(`worlds.verify`; short trainings get hardly a prompt wholly right).
`docs/log.md` has the two commands that trained the models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldline.eval import simulator
from worldline.eval.report import ALL, Rate
from worldline.eval.worlds import MODEL, Case, evaluate, renders, sample_cases
from worldline.generate.load import load
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import read_size
from worldline.media.write import write_bytes
from worldline.worlds import verify

MEASURES = ("wholly in the picture", "attributes right")
BATCH = 16


def rates(videos: Sequence[np.ndarray], cases: Sequence[Case], fps: float) -> tuple[Rate, Rate]:
    """The two `MEASURES` of videos that answer the cases."""
    inside = [simulator.read(video, fps).inside >= simulator.PRESENT for video in videos]
    found = evaluate(videos, cases, verify, fps).rates(MODEL)["everything"]
    asked = [rate for name, rate in found.items() if name != ALL]
    return Rate(sum(inside), len(inside)), Rate(sum(r.right for r in asked), sum(r.total for r in asked))


def answers(pipeline: Pipeline, cases: Sequence[Case], size: tuple[int, int]) -> list[np.ndarray]:
    videos: list[np.ndarray] = []
    for start in range(0, len(cases), BATCH):
        prompts = [case.prompt for case in cases[start : start + BATCH]]
        seeds = range(start, start + len(prompts))
        videos += pipeline.answer(prompts, seeds, width=size[0], height=size[1])
    return videos


def plot(figures: dict[str, dict[str, tuple[Rate, Rate]]], sizes: Sequence[str]) -> bytes:
    """PNG: a panel per measure, a group of bars per size."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for panel, (axes, measure) in enumerate(zip(figure.subplots(1, 2), MEASURES, strict=True)):
        for index, (name, found) in enumerate(figures.items()):
            shown = [found[size][panel] for size in sizes]
            shares = np.array([rate.share for rate in shown])
            low, high = np.array([rate.interval for rate in shown]).T
            spread = np.stack([shares - low, high - shares]).clip(0)
            places = np.arange(len(sizes)) + 0.27 * (index - (len(figures) - 1) / 2)
            axes.bar(places, shares, 0.25, label=name, yerr=spread, capsize=2, error_kw={"lw": 0.8})
        axes.set_xticks(range(len(sizes)), sizes, fontsize="small")
        axes.set_title(measure, fontsize="medium")
        axes.set_ylim(0, 1.02)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(figures))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("native", help="folder of the model that saw whole pictures")
    parser.add_argument("crops", help="folder of the model that saw square cuts")
    parser.add_argument("--n", type=int, default=96, help="held-out prompts per size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", default="64x64,96x64,64x96,80x64,112x64,64x112")
    parser.add_argument("--plot", type=Path, default=None, help="picture to write")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    cases, sizes = sample_cases(args.n, args.seed), args.sizes.split(",")
    figures: dict[str, dict[str, tuple[Rate, Rate]]] = {}
    models = {"native shapes": load(args.native), "square cuts": load(args.crops)}
    for size in sizes:
        width, height = read_size(size)
        pipeline = models["native shapes"]
        truths = list(renders(cases, pipeline.defaults.frames, height, width))
        made: dict[str, Any] = {name: answers(model, cases, (width, height)) for name, model in models.items()}
        for name, videos in {**made, "the true worlds": truths}.items():
            found = rates(videos, cases, float(pipeline.defaults.fps))
            figures.setdefault(name, {})[size] = found
            print(
                f"{size:8} {name:16} " + "; ".join(f"{m} {r}" for m, r in zip(MEASURES, found, strict=True)), flush=True
            )
    if args.plot:
        write_bytes(args.plot, plot(figures, sizes))
    if args.json:
        shares = {n: {s: [r.share for r in pair] for s, pair in found.items()} for n, found in figures.items()}
        args.json.write_text(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main()
