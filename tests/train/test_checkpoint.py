"""A checkpoint is there whole or not at all, and a damaged one is never believed."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from worldline.parallel.mesh import ParallelPlan, join
from worldline.train import checkpoint

ALONE = join(ParallelPlan())
FILE = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture(autouse=True)
def alone(recwarn):
    checkpoint._alone()


def write(folder, step, value=1.0, keep=2):
    tensors = {"model/w": torch.full((3, 2), value), "ema/w": torch.full((3, 2), -value)}
    return checkpoint.save(folder, step, tensors, {"seed": 7}, keep, ALONE)


def newest(folder, say=print):
    found = checkpoint.newest(folder, ALONE, say)
    return found and checkpoint.load(found[0])


def test_round_trip_and_retention(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, float(step))
    assert checkpoint.steps(tmp_path) == [2, 3]
    found = newest(tmp_path)
    assert (found.step, found.state["seed"], found.state["processes"]) == (3, 7, 1)
    assert torch.equal(found.tensors["ema/w"], torch.full((3, 2), -3.0))


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    folder = write(tmp_path, 1)
    assert sorted(entry.name for entry in folder.iterdir()) == [FILE, "state.json"]
    json.loads((folder / "state.json").read_text())
    with safe_open(folder / FILE, "pt") as file:
        assert sorted(file.keys()) == ["ema/w", "model/w"]


@pytest.mark.parametrize("call", ["mkdir", "rename", "fsync", "open"])
def test_failing_anywhere_leaves_the_one_before(tmp_path, monkeypatch, call):
    write(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert newest(tmp_path).step == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("name", [FILE, "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_any_damage_falls_back_one(tmp_path, name, damage):
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "flip":
        data[len(data) // 2 if name != "state.json" else 0] ^= 0x55
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    said = []
    assert newest(tmp_path, said.append).step == 1
    assert len(said) == 1
    assert "step-00000002 is damaged" in said[0]
    assert checkpoint.steps(tmp_path) == [1]


def test_nothing_to_load(tmp_path):
    assert newest(tmp_path / "none") is None


def test_what_a_killed_run_left_is_cleared(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".saving-00000002").mkdir()
    assert newest(tmp_path) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
