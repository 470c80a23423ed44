"""Muon beside AdamW: small diffusion transformers on the worlds, the same batches for all, steps taken in turn.

    python -m benchmarks.optimizers [--steps 300] [--rates 0.001,0.002,0.004] [--latents FOLDER] [--json]

Prints the loss on unseen worlds (of weights averaged with width 0.1, so over the last part of a run), the mean loss of
the last fifth of the steps, and milliseconds a step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from worldline.checkpoints import layout
from worldline.dit.model import DiTConfig
from worldline.parallel.mesh import join
from worldline.text import WordConfig
from worldline.train.dit import build, feed_of, task_of
from worldline.train.dit_plan import DiTPlan
from worldline.train.plan import OPTIMIZERS, LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan
from worldline.train.run import Run
from worldline.train.vae import load as load_vae


def plan_of(steps: int, clips: int, latents: str) -> DiTPlan:
    """What all runs share."""
    return DiTPlan(
        vae=str(layout.check(None)),
        config=DiTConfig(width=64, depth=3, heads=2, text_width=64, rope_axes=(8, 12, 12), learned_positions=(0, 0, 0)),
        text=WordConfig(words=(), layers=1),
        clips=ClipsPlan(count=clips, workers=1),
        latents=latents,
        nothing_known=(1.0,),
        images=(0.0,),
        batch=8,
        validate_clips=256,
        dtype="float32",
        loop=LoopPlan(steps=steps, log_every=0, validate_every=0, checkpoint_every=0),
    )


def measure(plan: DiTPlan, rates: list[float], folder: Path) -> dict[str, dict[str, float]]:
    """Figures of every optimizer at every rate."""
    crew = join(plan.parallel)
    feed = feed_of(plan, load_vae(plan.vae), crew.device, folder, print)
    runs: dict[str, Run] = {}
    for kind in OPTIMIZERS:
        for lr in rates:
            own = replace(plan, optim=OptimPlan(kind, lr=lr, warmup=20, schedule="constant", ema_widths=(0.1,)))
            runs[f"{kind} {lr:g}"] = Run(task_of(own, build(own), feed, crew), own, folder / f"{kind}-{lr:g}", crew)
    losses: dict[str, list[float]] = {name: [] for name in runs}
    seconds = dict.fromkeys(runs, 0.0)
    for _ in range(plan.loop.steps):
        for name, run in runs.items():
            began = time.perf_counter()
            losses[name].append(run.advance().values["loss"])
            seconds[name] += time.perf_counter() - began
    last = max(1, plan.loop.steps // 5)
    found = {}
    for name, run in runs.items():
        assert feed.validate is not None
        unseen = feed.validate(run.averaged(), crew.device)["val"]
        pace = 1e3 * seconds[name] / plan.loop.steps
        found[name] = {"unseen": unseen, "trained": sum(losses[name][-last:]) / last, "ms": pace}
    return found


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", default="0.001,0.002,0.004")
    parser.add_argument("--clips", type=int, default=1024, help="worlds to learn from")
    parser.add_argument("--latents", default="", help="folder in which their latents are kept")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(options.steps, options.clips, options.latents)
        found = measure(plan, [float(rate) for rate in options.rates.split(",")], Path(folder))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'':16}{'unseen':>9}{'trained':>9}{'ms':>8}")
    for name, row in found.items():
        print(f"{name:16}{row['unseen']:9.4f}{row['trained']:9.4f}{row['ms']:8.1f}")


if __name__ == "__main__":
    main()
