"""Driven worlds: pushes become inputs frame by frame, reach the model, and ask for a model that knows them."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.checkpoints.folder import Parts, save_pretrained
from worldline.cli import main
from worldline.dit.model import DiT
from worldline.errors import UserError
from worldline.generate.pipeline import Pipeline
from worldline.generate.rollout import inputs_of, rollout
from worldline.media.read import read_video
from worldline.media.write import write_image

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def driven_parts(micro_parts: Parts) -> Parts:
    """The untrained model with actions that matter."""
    torch.manual_seed(1)
    dit = DiT(dataclasses.replace(micro_parts.dit.config, actions=8))
    dit.load_state_dict(micro_parts.dit.state_dict(), strict=False)
    assert dit.actions is not None
    torch.nn.init.normal_(dit.actions.down.weight)
    return dataclasses.replace(micro_parts, dit=dit.eval().requires_grad_(False), defaults={**micro_parts.defaults})


@pytest.fixture(scope="module")
def pipeline(driven_parts: Parts) -> Pipeline:
    return Pipeline(driven_parts, identity="abc", device="cpu", dtype=torch.float32)


def test_pushes_become_inputs() -> None:
    inputs = inputs_of([("right", 0.125), ("none", 0.0625), ("away", 0.1875)], 16)
    assert inputs.tolist() == [[1, 0], [1, 0], [0, 0], [0, -1], [0, -1], [0, -1]]
    thirds = inputs_of([("left", 1 / 3)] * 3, 16)  # rounding does not add up
    assert len(thirds) == 16
    for wrong, named in (([("up", 1.0)], "unknown"), ([("left", 0.0)], "--pushes"), ([], "names none")):
        with pytest.raises(UserError, match=named):
            inputs_of(wrong, 16)


def test_a_rollout_begins_with_the_picture_and_lasts_as_long_as_the_pushes(pipeline: Pipeline) -> None:
    made = rollout(pipeline, "a red ball", [("right", 0.5), ("none", 0.25)], PICTURE, steps=1)
    assert made.frames.shape == (13, 32, 32, 3)
    assert np.array_equal(made.frames[0], PICTURE)
    assert made.metadata["pushes"] == "right:0.5,none:0.25"
    again = rollout(pipeline, "a red ball", [("right", 0.5), ("none", 0.25)], PICTURE, steps=1)
    assert np.array_equal(made.frames, again.frames)
    other = rollout(pipeline, "a red ball", [("right", 0.5), ("left", 0.25)], PICTURE, steps=1)
    assert not np.array_equal(made.frames[9:], other.frames[9:])
    drawn = rollout(pipeline, "a red ball", [("right", 0.25)], steps=1)
    assert np.array_equal(drawn.frames[0], pipeline.generate("a red ball", frames=1, steps=1).frames[0])


def test_a_long_rollout_goes_window_by_window(driven_parts: Parts) -> None:
    parts = dataclasses.replace(driven_parts, defaults={**driven_parts.defaults, "window": 3})
    pipeline = Pipeline(parts, device="cpu", dtype=torch.float32)
    first = [("right", 1.0)]
    one, other = (
        rollout(pipeline, "a ball", first + [(name, 1.0)], PICTURE, steps=1).frames for name in ("left", "away")
    )
    assert len(one) == len(other) == 33
    assert np.array_equal(one[:13], other[:13])  # what is pushed later does not reach back beyond its window
    assert not np.array_equal(one[17:], other[17:])


def test_without_actions_given_a_driven_model_is_the_plain_one(driven_parts: Parts, micro_parts: Parts) -> None:
    plain, able = (Pipeline(copy.copy(p), device="cpu", dtype=torch.float32) for p in (micro_parts, driven_parts))
    assert np.array_equal(plain.generate("a ball", seed=3).frames, able.generate("a ball", seed=3).frames)
    assert not plain.driven
    with pytest.raises(UserError, match="not taught"):
        rollout(plain, "a ball", [("left", 1.0)], PICTURE)


def test_on_the_command_line(
    driven_parts: Parts, micro_parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(driven_parts, tmp_path / "driven")
    save_pretrained(micro_parts, tmp_path / "plain")
    write_image(tmp_path / "first.png", PICTURE)
    words = ["rollout", "a red ball", "--pushes", "right:0.25,none:0.25", "--image", str(tmp_path / "first.png")]
    words += ["--steps", "1", "-o", str(tmp_path / "out.mp4"), "--json"]
    assert main([*words, "--model", str(tmp_path / "driven")]) == 0
    assert json.loads(capsys.readouterr().out)["verb"] == "rollout"
    assert len(read_video(tmp_path / "out.mp4").frames) == 9
    for pushes, model, named in (
        ("right:0.25", "plain", "not taught"),
        ("right", "driven", "DIRECTION:SECONDS"),
        ("up:1", "driven", "unknown"),
        ("left:0", "driven", "--pushes"),
        ("left:99999", "driven", "3600"),
    ):
        words[3] = pushes
        assert main([*words, "--overwrite", "--model", str(tmp_path / model)]) == 2
        assert named in capsys.readouterr().err
