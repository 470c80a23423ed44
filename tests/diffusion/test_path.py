"""Predictions of every kind convert into each other, and a variance-preserving model runs as a rectified flow."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from worldline.diffusion.path import RectifiedFlow, VariancePreserving, add_noise, as_rectified_flow, convert, target
from worldline.diffusion.samplers import heun
from worldline.diffusion.timesteps import schedule
from worldline.errors import UserError

KINDS = ("velocity", "epsilon", "v", "x0")
PATHS = (RectifiedFlow(), VariancePreserving())


@pytest.mark.parametrize("path", PATHS, ids=["flow", "vp"])
@pytest.mark.parametrize(("kind", "to"), list(product(KINDS, KINDS)))
def test_conversions(path: RectifiedFlow | VariancePreserving, kind: str, to: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    x_t = add_noise(path, x0, eps, t)
    given, wanted = (target(path, k, x0, eps, t) for k in (kind, to))  # type: ignore[arg-type]
    torch.testing.assert_close(convert(path, kind, to, given, x_t, t), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS, ids=["flow", "vp"])
def test_velocity_is_the_derivative_of_the_path(path: RectifiedFlow | VariancePreserving) -> None:
    x0, eps = torch.randn(2, 5, dtype=torch.float64)
    t, step = torch.tensor(0.3, dtype=torch.float64), 1e-6
    slope = (add_noise(path, x0, eps, t + step) - add_noise(path, x0, eps, t - step)) / (2 * step)
    torch.testing.assert_close(target(path, "velocity", x0, eps, t), slope, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=["flow", "vp"])
def test_ends_are_data_and_noise(path: RectifiedFlow | VariancePreserving) -> None:
    x0, eps = torch.randn(2, 5)
    torch.testing.assert_close(add_noise(path, x0, eps, torch.tensor(0.0)), x0)
    torch.testing.assert_close(add_noise(path, x0, eps, torch.tensor(1.0)), eps)


def test_variance_is_preserved() -> None:
    t = torch.linspace(0, 1, 7)
    path = VariancePreserving()
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones(7))


@pytest.mark.parametrize("kind", KINDS)
def test_vp_model_as_rectified_flow_reaches_the_data(kind: str) -> None:
    """Data N(2, 0.5^2): the ideal VP prediction is linear, and the flow must carry N(0, 1) onto the data."""
    path, mean, var = VariancePreserving(), 2.0, 0.25

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = path.alpha(t), path.sigma(t)
        total = alpha**2 * var + sigma**2
        x0 = mean + alpha * var / total * (x - alpha * mean)
        eps = sigma / total * (x - alpha * mean)
        return target(path, kind, x0, eps, t)  # type: ignore[arg-type]

    x = torch.tensor([-1.0, 0.0, 1.5], dtype=torch.float64)
    got = heun(as_rectified_flow(predict, kind, path), x, schedule(200).double())  # type: ignore[arg-type]
    torch.testing.assert_close(got, mean + math.sqrt(var) * x, atol=2e-3, rtol=0)


def test_unknown_kinds_are_refused() -> None:
    x = torch.zeros(1)
    with pytest.raises(UserError, match="prediction='score'"):
        target(RectifiedFlow(), "score", x, x, torch.tensor(0.5))  # type: ignore[arg-type]
