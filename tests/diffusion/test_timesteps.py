"""Distributions and schedules of timesteps, and guidance."""

from __future__ import annotations

import pytest
import torch

from worldline.diffusion.guidance import cfg, scale_at
from worldline.diffusion.timesteps import logit_normal, resolution_shift, schedule, shift, unshift
from worldline.errors import UserError


def test_logit_normal_has_its_mean_and_std_in_logits() -> None:
    t = logit_normal(20_000, torch.Generator().manual_seed(0), mean=0.5, std=2.0)
    assert t.min() > 0
    assert t.max() < 1
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(2.0, abs=0.05)


def test_same_seed_same_times() -> None:
    a, b = (logit_normal(5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


def test_shift_is_a_change_of_odds() -> None:
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    moved = shift(t, 3.0)
    torch.testing.assert_close(moved / (1 - moved), 3 * t / (1 - t))
    torch.testing.assert_close(unshift(moved, 3.0), t)
    assert shift(torch.tensor([0.0, 1.0]), 3.0).tolist() == [0.0, 1.0]


def test_resolution_shift_grows_with_the_root_of_tokens() -> None:
    assert resolution_shift(80) == pytest.approx(3.0)
    assert resolution_shift(320) == pytest.approx(6.0)
    assert resolution_shift(1) == 1.0
    with pytest.raises(UserError, match="tokens=0"):
        resolution_shift(0)


@pytest.mark.parametrize("value", [1.0, 3.0])
def test_schedule_falls_from_one_to_zero(value: float) -> None:
    times = schedule(20, value)
    assert len(times) == 21
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    torch.testing.assert_close(unshift(times, value).diff(), torch.full((20,), -0.05), atol=1e-6, rtol=0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match="steps=0"):
        schedule(0)


def test_guidance_extrapolates_from_uncond_through_cond() -> None:
    cond, uncond = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(cfg(cond, uncond, 1.0), cond)
    torch.testing.assert_close(cfg(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(cfg(cond, uncond, 3.0) - uncond, 3 * (cond - uncond))


def test_rescale_returns_the_spread_of_each_sample() -> None:
    cond, uncond = torch.randn(2, 3, 4, 5) * torch.tensor([1.0, 2.0, 5.0])[:, None, None]
    full = cfg(cond, uncond, 6.0, rescale=1.0)
    torch.testing.assert_close(full.std((1, 2)), cond.std((1, 2)))
    half = cfg(cond, uncond, 6.0, rescale=0.5)
    torch.testing.assert_close(half, (full + cfg(cond, uncond, 6.0)) / 2)


def test_interval_switches_guidance_off_outside() -> None:
    assert [scale_at(t, 5.0, (0.3, 0.8)) for t in (0.1, 0.3, 0.5, 0.8, 0.9)] == [1.0, 5.0, 5.0, 5.0, 1.0]
