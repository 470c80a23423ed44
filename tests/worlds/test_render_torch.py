"""The batched ray-caster draws what the scalar one draws; on a GPU, too."""

import numpy as np
import pytest
import torch

from worldline.worlds.render import render
from worldline.worlds.render_torch import render_batch
from worldline.worlds.scene import KINDS, Scene, sample_scene


def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng, "any", kind) for kind in KINDS for _ in range(2)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("frames", "height", "width"), [(3, 64, 64), (2, 40, 72)])
def test_the_batch_equals_the_single_renders(device: str, frames: int, height: int, width: int) -> None:
    shown, ids = render_batch(scenes(), frames, height, width, device=device)
    assert (shown.dtype, ids.dtype) == (torch.uint8, torch.uint8)
    for i, scene in enumerate(scenes()):
        clip = render(scene, frames, height, width)
        assert (ids[i].cpu().numpy() != clip.ids).mean() < 1e-4  # a ray along an edge may round either way
        error = np.abs(shown[i].cpu().numpy().astype(int) - clip.frames.astype(int))
        assert (error > 1).mean() < 1e-4
