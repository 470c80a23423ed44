"""Fixtures that tests of several folders share."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worldline.checkpoints import families, layout


@pytest.fixture(scope="session", autouse=True)
def _own_identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests write is signed by an identity of their own, not by the developer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


def _safetensors(shape: tuple[int, ...] = (2, 3)) -> bytes:
    """A float32 file of zeros, written from the format's description."""
    count = 1
    for side in shape:
        count *= side
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * count]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * count)


def _write_skeleton(folder: Path) -> Path:
    """A folder whose layout is right and whose weights fit no model."""
    for component, config in families.CONFIG_NAMES.items():
        (folder / component).mkdir(parents=True)
        (folder / component / config).write_text("{}")
    for component, stem in families.WEIGHT_STEMS.items():
        (folder / component / f"{stem}.safetensors").write_bytes(_safetensors())
    (folder / layout.INDEX).write_text(json.dumps({"_class_name": layout.PIPELINE_CLASS, "defaults": {}}))
    return folder


@pytest.fixture
def skeleton() -> Callable[[Path], Path]:
    """Writes a model folder of sound layout without a model, in no time and without torch."""
    return _write_skeleton


@pytest.fixture(scope="session")
def micro_parts() -> Any:
    """An untrained but lively pipeline of a few thousand parameters, its output head not zero."""
    import torch

    from worldline.checkpoints.folder import Parts, SchedulerConfig
    from worldline.dit.model import DiT, DiTConfig
    from worldline.text import WordConfig, WordTransformer
    from worldline.vae.latents import Whitening
    from worldline.vae.model import MICRO, VideoVAE

    torch.manual_seed(0)
    config = DiTConfig(width=32, depth=2, heads=2, text_width=16, rope_axes=(4, 6, 6), learned_positions=(8, 8, 8))
    dit = DiT(config)
    for linear in (dit.head, dit.modulation, dit.final):
        torch.nn.init.normal_(linear.weight, std=0.1)
    text = WordTransformer(WordConfig(words=("a", "red", "ball", "rolls"), width=16, layers=1, heads=2, buckets=32))
    whitening = Whitening(torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16), torch.linspace(1.5, 0.5, 16))
    defaults = {"width": 32, "height": 32, "frames": 5, "fps": 16, "steps": 3, "guidance_scale": 3.0}
    vae = VideoVAE(MICRO)
    for module in (vae, dit, text):
        module.eval().requires_grad_(False)
    return Parts(vae, dit, text, whitening, SchedulerConfig(shift=3.0), defaults)
