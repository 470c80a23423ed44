"""Picture quality: PSNR and SSIM against a reference, and flicker, which needs none."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

WINDOW_SIGMA, WINDOW_RADIUS = 1.5, 5  # the 11 x 11 Gaussian of the SSIM paper
LUMA = np.array([0.2126, 0.7152, 0.0722])  # BT.709


def psnr(a: np.ndarray, b: np.ndarray, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all values, 10 log10(range^2 / mean squared error); inf when equal.

    `a` and `b` have one shape. `data_range` is 255 for uint8 and 2 for floats in [-1, 1] unless given.
    Raises ValueError when shapes or types do not match.
    """
    x, y, span = _matched(a, b, data_range)
    error = float(np.mean((x - y) ** 2))
    return math.inf if error == 0 else 10 * math.log10(span**2 / error)


def ssim(a: np.ndarray, b: np.ndarray, data_range: float | None = None) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over pixels, channels and frames; 1 when equal.

    `a` and `b` are (..., H, W, 3), as uint8 or float. Only windows that lie inside the picture count, as in the
    paper; sides under 11 are reflected instead. Raises ValueError as `psnr`.
    """
    x, y, span = _matched(a, b, data_range)
    if x.ndim < 3:
        raise ValueError(f"ssim needs (..., H, W, channels), found shape {x.shape}")
    size = x.shape[-3:]
    pairs = zip(x.reshape(-1, *size), y.reshape(-1, *size), strict=True)
    return float(np.mean([_frame_ssim(one, other, span) for one, other in pairs]))


def flicker(frames: np.ndarray) -> float:
    """Standard deviation, in 8-bit levels, of the luma noise that changes from frame to frame; uint8 (T, H, W, 3).

    For each pixel the second difference in time x[t+1] - 2 x[t] + x[t-1] of independent noise has the
    deviation sqrt(6) sigma, and its mean absolute value is sqrt(2 / pi) of that. The median over pixels
    ignores what moves, as long as less than half of the picture does; fades and pans at constant speed over
    smooth ground cancel. Raises ValueError for fewer than 3 frames.
    """
    if len(frames) < 3:
        raise ValueError(f"flicker needs 3 frames, found {len(frames)}")
    luma = frames.astype(np.float32) @ LUMA.astype(np.float32)  # (T, H, W)
    second = np.abs(luma[2:] - 2 * luma[1:-1] + luma[:-2]).mean(axis=0)  # (H, W)
    return float(np.median(second) * math.sqrt(math.pi / 2) / math.sqrt(6))


def _matched(a: np.ndarray, b: np.ndarray, data_range: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"cannot compare {a.dtype} {a.shape} with {b.dtype} {b.shape}")
    if a.size == 0:
        raise ValueError(f"nothing to compare in shape {a.shape}")
    span = data_range or (255.0 if a.dtype == np.uint8 else 2.0)
    return a.astype(np.float64), b.astype(np.float64), span


def _frame_ssim(x: np.ndarray, y: np.ndarray, span: float) -> float:
    """One frame (H, W, C)."""
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_x, mean_y = _window(x), _window(y)
    var_x, var_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    cov = _window(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    score = luminance * structure
    top, left = (WINDOW_RADIUS if side > 2 * WINDOW_RADIUS else 0 for side in x.shape[:2])
    return float(score[top : x.shape[0] - top, left : x.shape[1] - left].mean())


def _window(x: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(x, (WINDOW_SIGMA, WINDOW_SIGMA, 0), radius=(WINDOW_RADIUS, WINDOW_RADIUS, 0))
