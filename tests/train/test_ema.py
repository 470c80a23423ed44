"""Averages of weights against their definition as weighted sums, whole, resumed and made afterwards."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.toys import ToyPlan, toy_task
from worldline.errors import UserError
from worldline.parallel.mesh import ParallelPlan, join
from worldline.parallel.shard import Objective, prepare
from worldline.train import checkpoint
from worldline.train.ema import EMA, exponent, profile, reconstruct
from worldline.train.loop import train
from worldline.train.optim import Optimizer
from worldline.train.plan import LoopPlan, OptimPlan


def averaged(steps, *settings):
    """EMA of one weight that is set to its step's number."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = Optimizer(model, prepare(Objective(model, None), join(ParallelPlan()), torch.float32), OptimPlan())
    ema = EMA(optimizer, *settings)
    for update in range(1, steps + 1):
        nn.init.constant_(optimizer.masters["weight"], float(update))
        ema.update(update)
    return ema


def test_the_exponential_average_follows_its_warm_up():
    expected = 0.0
    for update in range(1, 200):
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert float(averaged(199, 0.9).weights["weight"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_a_power_function_average_is_the_weighted_sum_of_all_weights(width):
    found = averaged(300, 0.9, (0.15, width)).averages
    assert list(found) == ["ema-0.15", f"ema-{width:g}"]
    for name, each in (("ema-0.15", 0.15), (f"ema-{width:g}", width)):
        shares = profile(each, 300, 300)
        assert shares.sum() == pytest.approx(1.0)
        assert float(found[name]["weight"]) == pytest.approx(shares @ np.arange(1, 301), rel=1e-5)
    place = (np.arange(100_000) + 0.5) / 100_000
    shares = profile(width, 100_000, 100_000)
    assert np.sqrt(shares @ (place - shares @ place) ** 2) == pytest.approx(width, rel=1e-3)
    assert shares[1000] / shares[500] == pytest.approx((1000.5 / 500.5) ** exponent(width), rel=1e-3)


def test_widths_that_cannot_be_are_named():
    for widths, word in (((0.5,), "0.5"), ((0.1, 0.1), "0.1"), ((0.0,), "0")):
        with pytest.raises(UserError, match=rf"optim\.ema_widths: {word} must come once, above 0 and up to 0\.288"):
            OptimPlan(ema_widths=widths)


def test_averages_go_on_to_the_same_bits_and_make_others(tmp_path):
    plan = ToyPlan(
        optim=OptimPlan(lr=3e-3, warmup=5, ema_widths=(0.1, 0.05)),
        loop=LoopPlan(steps=24, checkpoint_every=1, keep=24, log_every=5),
    )
    stop = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 9 else None  # noqa: E731
    train(toy_task(plan, stop), plan, tmp_path / "cut", quiet=True)
    outcome = train(toy_task(plan), plan, tmp_path / "cut", resume=True, quiet=True)
    folder = tmp_path / "cut" / "checkpoints"
    held = {step: checkpoint.load(folder / f"step-{step:08d}").tensors for step in checkpoint.steps(folder)}
    assert sorted(held) == list(range(1, 25))
    for width in (0.05, 0.1, 0.07):
        weights, error = reconstruct(folder, width)
        assert error < (1e-9 if width != 0.07 else 0.02)
        for name, value in weights.items():
            truth = sum(s * held[i + 1][f"model/{name}"].double() for i, s in enumerate(profile(width, 24, 24)))
            torch.testing.assert_close(value, truth.float(), rtol=1e-5, atol=1e-6 if width != 0.07 else 1e-4)
            if width != 0.07:
                torch.testing.assert_close(value, held[24][f"ema-{width}/{name}"], rtol=1e-6, atol=1e-7)
            assert torch.equal(outcome.weights[name], held[24][f"ema-0.1/{name}"])
    whole = train(toy_task(plan), plan, tmp_path / "whole", quiet=True)
    assert all(torch.equal(whole.weights[name], value) for name, value in outcome.weights.items())
    other = dataclasses.replace(plan, optim=dataclasses.replace(plan.optim, ema_widths=(0.1,)))
    with pytest.raises(UserError, match="another model"):
        train(toy_task(other), other, tmp_path / "cut", resume=True, quiet=True)


def test_what_cannot_be_made_is_said(tmp_path):
    with pytest.raises(UserError, match=r"--ema 0\.4: a share of the run"):
        reconstruct(tmp_path, 0.4)
    with pytest.raises(UserError, match=r"holds no averages; train with --set optim\.ema_widths"):
        reconstruct(tmp_path, 0.1)
