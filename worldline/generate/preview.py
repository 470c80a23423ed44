"""Pictures of how training goes: contact sheets of reconstructions and of samples, as callbacks for `train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from worldline.checkpoints.folder import Parts
from worldline.generate.codec import to_uint8
from worldline.generate.pipeline import Pipeline
from worldline.media.preview import contact_sheet
from worldline.media.write import write_image
from worldline.vae.model import VideoVAE
from worldline.worlds.captions import caption
from worldline.worlds.render import render
from worldline.worlds.scene import sample_scene

ROWS = 8


def reconstruction_sheet(step: int, vae: VideoVAE, folder: Path) -> None:
    """`samples/step-N.png`: held-out world clips, each above its reconstruction."""
    weight = next(vae.parameters())
    clips, labels = [], []
    for index in range(ROWS // 2):
        rng = np.random.default_rng([index])
        scene = sample_scene(rng, "heldout")
        truth = render(scene).frames  # (T, H, W, 3)
        pixels = torch.from_numpy(truth).permute(3, 0, 1, 2)[None].to(weight) / 127.5 - 1  # (1, 3, T, H, W)
        with torch.no_grad():
            again = to_uint8(vae.decode(vae.encode(pixels).mean)[0])
        clips += [truth, again]
        labels += [caption(scene, rng, "short"), "reconstruction"]
    _write(step, folder, clips, labels)


def sample_sheet(step: int, parts: Parts, folder: Path) -> None:
    """`samples/step-N.png`: videos for held-out prompts, always the same prompts and seeds."""
    prompts = []
    for index in range(ROWS):
        rng = np.random.default_rng([index])
        prompts.append(caption(sample_scene(rng, "heldout"), rng, "short"))
    _write(step, folder, Pipeline(parts).answer(prompts, range(ROWS)), prompts)


def _write(step: int, folder: Path, clips: list[np.ndarray], labels: list[str]) -> None:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    write_image(folder / "samples" / f"step-{step:08d}.png", contact_sheet(clips, labels))
