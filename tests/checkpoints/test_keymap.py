"""Weights are in memory once: files are let go of when what they hold has become ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from worldline.checkpoints import keymap
from worldline.checkpoints.keymap import Piece, own, stacked
from worldline.checkpoints.weights import Weights


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 32))


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A module's file, in which the first matrix is in three, and its weights."""
    weights = {name: torch.randn(value.shape) for name, value in build().state_dict().items()}
    first = dict(zip("qkv", weights["0.weight"].chunk(3), strict=True))
    rest = {name: value for name, value in weights.items() if name != "0.weight"}
    path = tmp_path / "weights.safetensors"
    save_file({name: value.clone() for name, value in (first | rest).items()}, path)
    return path, weights


def piece_of(path: Path) -> Piece[nn.Module]:
    table = [entry for entry in own(build) if entry.ours != "0.weight"]
    return Piece("tiny", build, Weights([path]), [stacked("0.weight", "q", "k", "v"), *table])


@pytest.mark.parametrize("lot", [0, 100, keymap.LOT])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_are_the_same_whatever_the_lots(
    lot: int, dtype: torch.dtype | None, stored: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, weights = stored
    monkeypatch.setattr(keymap, "LOT", lot)
    module = piece_of(path).load(dtype)
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name].to(dtype))
    assert not any(value.requires_grad for value in module.parameters())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's list of what is mapped")
def test_a_file_is_held_only_where_its_bytes_are_used(stored: tuple[Path, dict[str, Tensor]]) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    path, _ = stored
    piece = piece_of(path)
    halved = piece.load(torch.bfloat16)
    assert mapped() == 0  # all were made of others
    kept = piece.load()
    assert mapped() == 1  # the second matrix and the biases are the file's own
    assert {value.dtype for module in (halved, kept) for value in module.parameters()} == {
        torch.bfloat16,
        torch.float32,
    }
    piece.weights.close()  # type: ignore[attr-defined]
    del kept, halved
    assert mapped() == 0


def test_what_is_closed_is_opened_again(stored: tuple[Path, dict[str, Tensor]]) -> None:
    path, weights = stored
    held = Weights([path])
    before = held["1.bias"]
    held.close()
    assert torch.equal(before, weights["1.bias"])  # a tensor outlives it
    assert torch.equal(held["1.bias"], before)
