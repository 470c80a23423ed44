"""Quality figures against their definitions and against cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldline.eval.quality import flicker, psnr, ssim


def noise_clip(sigma: float, frames: int = 12, size: int = 48) -> np.ndarray:
    rng = np.random.default_rng(0)
    still = np.linspace(60, 190, size)[None, None, :, None] * np.ones((frames, size, size, 3))
    grey = rng.normal(0, sigma, (frames, size, size, 1))  # equal in all channels: luma noise of sigma
    return np.clip(np.round(still + grey), 0, 255).astype(np.uint8)


def test_psnr_is_its_definition() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))
    x = np.zeros((3, 4, 4, 3), np.float32)
    assert psnr(x, x + 0.2) == pytest.approx(20, abs=1e-4)  # range 2 in [-1, 1]
    assert psnr(x, x + 0.2, data_range=1.0) == pytest.approx(20 - 20 * math.log10(2), abs=1e-4)


def test_psnr_does_not_wrap_bytes() -> None:
    low, high = np.full((1, 2, 2, 3), 10, np.uint8), np.full((1, 2, 2, 3), 250, np.uint8)
    assert psnr(low, high) == psnr(high, low) == pytest.approx(20 * math.log10(255 / 240))


def test_ssim_of_constant_pictures_is_the_luminance_term() -> None:
    # Without variance eq. 13 is (2 m n + c1) / (m^2 + n^2 + c1).
    a, b = np.full((1, 20, 20, 3), 100, np.uint8), np.full((1, 20, 20, 3), 150, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-9)
    assert ssim(a, a) == 1


def test_ssim_against_a_direct_sum_over_one_window() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 1, 11, 11, 1), dtype=np.uint8)
    r = np.arange(-5, 6)
    weight = np.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    x, y = a[0, ..., 0].astype(float), b[0, ..., 0].astype(float)
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
    cov = (weight * (x - mx) * (y - my)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(a, b) == pytest.approx(expected, rel=1e-6)  # an 11 x 11 picture holds one window


def test_ssim_is_symmetric_falls_with_noise_and_is_free_of_scale() -> None:
    clean, little, much = noise_clip(0), noise_clip(4), noise_clip(16)
    assert ssim(clean, little) == pytest.approx(ssim(little, clean))
    assert 1 > ssim(clean, little) > ssim(clean, much)
    inside = [clip.astype(np.float64) / 127.5 - 1 for clip in (clean, little)]
    assert 1 > ssim(inside[0], inside[1], data_range=2) > 0


def test_small_pictures_have_an_ssim() -> None:
    a = np.random.default_rng(0).integers(0, 256, (2, 5, 3, 3), dtype=np.uint8)
    assert ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_mismatch_is_refused(metric: object) -> None:
    a = np.zeros((1, 8, 8, 3), np.uint8)
    for b in (np.zeros((1, 8, 9, 3), np.uint8), a.astype(np.float32)):
        with pytest.raises(ValueError, match="cannot compare"):
            metric(a, b)  # type: ignore[operator]


@pytest.mark.parametrize("sigma", [3, 6, 10])
def test_flicker_measures_the_deviation_of_temporal_noise(sigma: float) -> None:
    assert flicker(noise_clip(sigma)) == pytest.approx(sigma, rel=0.06)


def test_flicker_ignores_still_pictures_fades_and_a_moving_thing() -> None:
    still = noise_clip(0)
    assert flicker(still) == 0
    fade = np.round(np.linspace(0, 55, 12)).astype(np.uint8)[:, None, None, None] + still
    assert flicker(fade) < 0.5
    moving = still.copy()
    for t in range(12):
        moving[t, 20:30, 3 * t : 3 * t + 10] = 255
    assert flicker(moving) == 0
