"""`worldline train` is told to stop: it saves, ends with the code that says resume, and goes on to the same bits."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from worldline.cli import main
from worldline.errors import EXIT_RESUMABLE
from worldline.train import checkpoint
from worldline.train.run import Run

STEPS = 6


@pytest.fixture
def words(setting, monkeypatch):
    """The command line of a short run, which trains the tiny plan of these tests."""
    plan, *_ = setting
    plan = replace(plan, loop=replace(plan.loop, steps=STEPS, log_every=1, checkpoint_every=2))
    monkeypatch.setattr("worldline.cli.models.recipe", lambda name, what: plan)
    return ["train", "dit", "--set", "loop.validate_every=0", "--set", "loop.sample_every=0", "--out"]


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_command_with_a_code_that_says_resume(words, sign, tmp_path, monkeypatch, capfd):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, str(whole)]) == 0
    advance = Run.advance

    def told(run, *args):
        if run.step == 2:
            os.kill(os.getpid(), getattr(signal, sign))
        return advance(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", told)
        assert main([*words, str(cut)]) == EXIT_RESUMABLE == 75
    assert checkpoint.steps(cut / "checkpoints")[-1] == 3
    assert "stopped at step 3, saved; --resume continues" in capfd.readouterr().out
    assert main([*words, str(cut)]) == 2  # not over what is there
    assert main([*words, str(cut), "--resume"]) == 0
    ends = [checkpoint.load(run / "checkpoints" / f"step-{STEPS:08d}").tensors for run in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
