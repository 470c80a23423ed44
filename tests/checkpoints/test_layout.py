"""The model folder's layout: what is accepted, and that each kind of damage is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worldline.checkpoints import layout
from worldline.errors import UserError

Skeleton = Callable[[Path], Path]


def test_a_sound_folder_passes_and_counts(tmp_path: Path, skeleton: Skeleton) -> None:
    folder = skeleton(tmp_path / "m")
    assert layout.check(folder) == folder
    assert layout.info(folder)["parameters"] == 3 * 6


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
DAMAGE: dict[
    str, tuple[str, str, bytes | None]
] = {  # what the message names, the file, its new content (None: removed)
    "index gone": ("model_index.json", "model_index.json", None),
    "index no JSON": ("model_index.json", "model_index.json", b"{"),
    "index a list": ("model_index.json", "model_index.json", b"[]"),
    "foreign": ("FluxPipeline", "model_index.json", b'{"_class_name": "FluxPipeline"}'),
    "config gone": ("config.json", "vae/config.json", None),
    "config binary": ("config.json", "vae/config.json", b"\xff\xfe"),
    "weights gone": ("transformer", TRANSFORMER, None),
    "weights cut": ("damaged", TRANSFORMER, b"cut"),
    "weights empty": ("damaged", VAE, b""),
    "weights a pickle": ("damaged", "text_encoder/model.safetensors", b"\x80\x04" * 99),
    "weights a pointer": ("damaged", "text_encoder/model.safetensors", b"version https://git-lfs.github.com/spec/v1"),
}


@pytest.mark.parametrize(("named", "file", "content"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_in_one_line(
    named: str, file: str, content: bytes | None, tmp_path: Path, skeleton: Skeleton
) -> None:
    path = skeleton(tmp_path / "m") / file
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:-1] if content == b"cut" else content)
    with pytest.raises(UserError) as caught:
        layout.check(tmp_path / "m")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hash_sees_every_weight_and_config_and_no_card(tmp_path: Path, skeleton: Skeleton) -> None:
    folder = skeleton(tmp_path / "m")
    before = layout.model_hash(folder)
    (folder / "README.md").write_text("A card may be corrected without making another model.")
    assert layout.model_hash(folder) == before
    for file in (
        "vae/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ):
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data + b" ")
        assert layout.model_hash(folder) != before
        (folder / file).write_bytes(data)
    assert layout.model_hash(folder) == before
