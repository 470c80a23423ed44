"""What every term of the autoencoder's loss does: short runs that differ in one term, judged alike.

    python -m benchmarks.vae_losses [--steps 300] [--json]

A small autoencoder (4x8x8, as `tests` use it) learns 32x32 worlds from its closed-form linear code. All runs see the
same batches; the last column is how much of the edges is lost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from worldline.eval.codec import judge
from worldline.train import vae as task
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.precompute import ClipsPlan, cache_clips, held_out, to_pixels
from worldline.vae.losses import edge_loss
from worldline.vae.model import MICRO

TERMS: dict[str, dict[str, float]] = {
    "squares": {},
    "+ absolute": {"l1": 0.1},
    "+ edges": {"l1": 0.1, "edge": 0.5},
    "+ structure": {"l1": 0.1, "edge": 0.5, "structure": 0.1},
    "+ discriminator": {"l1": 0.1, "edge": 0.5, "structure": 0.1, "adversarial": 0.3},
}


def main() -> None:
    """Trains, judges, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.steps)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'loss':18}{'PSNR':>8}{'SSIM':>8}{'flicker':>9}{'edges lost':>12}")
    for name, row in found.items():
        print(f"{name:18}{row['psnr']:8.2f}{row['ssim']:8.3f}{row['flicker']:9.2f}{row['edges']:12.5f}")


def measure(steps: int) -> dict[str, dict[str, float]]:
    """Figures of the linear code and of every run."""
    plan = task.VAEPlan(
        config=MICRO,
        clips=ClipsPlan(count=256, frames=9, height=32, width=32, workers=0),
        batch=8,
        lengths=(9, 9, 5, 1),
        l1=0.0,
        edge=0.0,
        sharpen_from=0.2,
        adversarial_from=0.5,
        discriminator_width=16,
        dtype="float32",
        optim=OptimPlan(lr=2e-3, warmup=20, weight_decay=0.0, ema=0.99),
        loop=LoopPlan(steps=steps, log_every=0, validate_every=0, checkpoint_every=0),
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clips = cache_clips(plan.clips, root / "clips")
        unseen = cache_clips(held_out(plan.clips, 48), root / "unseen")[np.arange(48)]
        found = {"linear code": judged(task.build(plan, clips, None).vae, unseen)}
        for number, (name, terms) in enumerate(TERMS.items()):
            run = root / str(number)
            run.mkdir()
            (run / "clips").symlink_to(root / "clips")
            task.train(replace(plan, **terms), run)
            found[name] = judged(task.load_codec(run), unseen)
    return found


@torch.no_grad()
def judged(vae: task.VideoCodec, clips: np.ndarray) -> dict[str, float]:
    """The report's figures, and the error of image gradients."""
    kept = judge(vae, {"unseen": clips}).sets["unseen"]
    pixels = to_pixels(clips)
    edges = float(edge_loss(vae.decode(vae.encode(pixels).mean), pixels))
    return {"psnr": kept.psnr, "ssim": kept.ssim, "flicker": kept.flicker, "edges": edges}


if __name__ == "__main__":
    main()
