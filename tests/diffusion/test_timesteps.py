"""Distributions and schedules of timesteps, and guidance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from worldline.diffusion.guidance import cfg, cfg_text_image, image_ramp, oscillating, scale_at
from worldline.diffusion.timesteps import (
    logit_normal,
    opensora_shift,
    resolution_shift,
    schedule,
    shift,
    unshift,
    wan_schedule,
)
from worldline.errors import UserError

OPENSORA = json.loads((Path(__file__).parent / "opensora_schedules.json").read_text())


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


def test_wan_timesteps_of_the_authors_and_of_diffusers() -> None:
    """The two differ, so each is named: Wan-Video/Wan2.1 is the default, diffusers 0.37 and later the other."""
    assert wan_schedule(4, 3.0)[1].tolist() == [999, 899, 749, 499]
    assert wan_schedule(4, 3.0, "authors")[1].tolist() == [999, 899, 749, 499]
    assert wan_schedule(4, 3.0, "diffusers")[1].tolist() == [999, 900, 750, 500]
    for steps in (0, -1):
        with pytest.raises(UserError, match=f"steps={steps}"):
            wan_schedule(steps)
    with pytest.raises(UserError, match="spacing='comfy'"):
        wan_schedule(4, 3.0, "comfy")  # type: ignore[arg-type]


def test_wan_sigmas_are_divided_before_the_shift() -> None:
    sigmas, timesteps = wan_schedule(5, 3.0)
    assert sigmas.dtype == torch.float32
    assert timesteps.dtype == torch.int64
    even = unshift(sigmas.double(), 3.0)
    torch.testing.assert_close(even, torch.linspace(0.999, 0, 6, dtype=torch.float64), atol=1e-6, rtol=0)
    sigmas, _ = wan_schedule(5, 3.0, "diffusers")
    assert sigmas[0].item() == pytest.approx(0.999999, abs=1e-7)
    assert sigmas[-1] == 0
    even = unshift(sigmas.double(), 3.0)[1:-1]
    torch.testing.assert_close(even, torch.linspace(1, 0.001, 6, dtype=torch.float64)[1:-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [1.0, 3.0, 5.0, 16.0])
def test_wan_schedule_is_that_of_diffusers_to_the_last_bit(value: float) -> None:
    """At shift 1 many timesteps lie on an integer, where the order of rounding decides which one they are cut to."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=value
    )
    for steps in (1, 4, 48, 50, 111):
        scheduler.set_timesteps(steps)
        sigmas, timesteps = wan_schedule(steps, value, "diffusers")
        assert torch.equal(sigmas, scheduler.sigmas)
        assert torch.equal(timesteps, scheduler.timesteps)


@pytest.mark.parametrize("name", OPENSORA)
def test_opensora_schedules_are_the_published_ones(name: str) -> None:
    """Made with hpcaitech/Open-Sora: steps, tokens of a latent frame, latent frames."""
    steps, tokens, frames = map(int, name.split("_"))
    got = schedule(steps, opensora_shift(tokens, frames))
    torch.testing.assert_close(got, torch.tensor(OPENSORA[name]), atol=1.5e-7, rtol=0)


def test_opensora_shift_is_a_line_times_the_root_of_the_frames() -> None:
    assert opensora_shift(256, 1) == 1
    assert opensora_shift(4096, 1) == 3
    assert opensora_shift(2176, 4) == pytest.approx(4)
    assert opensora_shift(6, 1) < 1  # the line goes on below 256
    with pytest.raises(UserError, match="frames=0"):
        opensora_shift(256, 0)


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


def test_two_scales_are_the_published_sum() -> None:
    cond, no_text, neither = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    got = cfg_text_image(cond, no_text, neither, 7.5, 3.0)
    torch.testing.assert_close(got, neither + 3.0 * (no_text - neither) + 7.5 * (cond - no_text))
    torch.testing.assert_close(cfg_text_image(cond, no_text, neither, 1.0, 1.0), cond)
    torch.testing.assert_close(cfg_text_image(cond, no_text, no_text, 7.5, 3.0), cfg(cond, no_text, 7.5))
    rescaled = cfg_text_image(cond, no_text, no_text, 7.5, 3.0, rescale=0.7)
    torch.testing.assert_close(rescaled, cfg(cond, no_text, 7.5, rescale=0.7))
    each = torch.tensor([1.0, 2.0, 3.0, 4.0])
    got = cfg_text_image(cond, no_text, neither, 7.5, each[:, None])
    for i, scale in enumerate(each.tolist()):
        alone = cfg_text_image(cond[:, i], no_text[:, i], neither[:, i], 7.5, scale)
        torch.testing.assert_close(got[:, i], alone)


def test_guidance_oscillates_from_step_10() -> None:
    assert [oscillating(7.5, step) for step in range(14)] == [7.5] * 11 + [1.0, 7.5, 1.0]


def test_image_guidance_grows_over_frames_and_fades_over_steps() -> None:
    """As there: linspace(1, linspace(scale, 1, steps + 1)[step], frames)."""
    for step in (0, 7, 49):
        height = torch.linspace(3.0, 1.0, 51)[step]
        got = image_ramp(3.0, step, 50, 33)
        torch.testing.assert_close(got, torch.linspace(1.0, float(height), 33))
    assert image_ramp(3.0, 0, 50, 5).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert image_ramp(3.0, 25, 50, 3).tolist() == [1.0, 1.5, 2.0]
    assert image_ramp(3.0, 0, 50, 1).tolist() == [1.0]
    assert image_ramp(oscillating(3.0, 11), 11, 50, 3).tolist() == [1.0, 1.0, 1.0]
