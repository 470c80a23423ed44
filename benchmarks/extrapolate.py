"""How far do positions reach? Videos longer than any whole one in training, with and without stretched positions.

    python -m benchmarks.extrapolate [--model DIR] [--n 64] [--lengths 17,33,65]

All latent frames attend to each other. Stretched, the times are divided so that the last one is the last that the
model's own clips have (position interpolation, Chen et al. 2023).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from worldline.checkpoints.folder import load_parts
from worldline.eval.worlds import MODEL, evaluate, sample_cases
from worldline.generate.pipeline import Pipeline
from worldline.worlds import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; the shipped model unless given")
    parser.add_argument("--n", type=int, default=64, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lengths", default="17,33,65", help="frames")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    cases = sample_cases(args.n, args.seed)
    plain, figures = Pipeline(load_parts(args.model)), []
    for frames in map(int, args.lengths.split(",")):
        factor = (frames - 1) / (plain.defaults.frames - 1)
        for stretch in sorted({1.0, factor}):
            parts = load_parts(args.model)
            parts.dit.config = replace(parts.dit.config, rope_stretch=(stretch, 1.0, 1.0))
            pipeline = Pipeline(parts)
            videos = pipeline.answer([case.prompt for case in cases], range(args.n), frames=frames)
            rates = evaluate(videos, cases, verify, plain.defaults.fps).rates(MODEL)["everything"]
            chosen = {name: str(rates[name]) for name in ("all", "colour", "shape", "count", "motion")}
            figures.append({"frames": frames, "stretch": stretch, **chosen})
            row = "  ".join(f"{name} {rate}" for name, rate in chosen.items())
            print(f"{frames} frames, positions / {stretch:g}:  {row}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
