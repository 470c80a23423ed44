"""Samplers against the exact flow of a Gaussian, and their order of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldline.diffusion.samplers import SAMPLERS, by_name, dpmpp_2m, euler, heun, unipc
from worldline.diffusion.timesteps import schedule
from worldline.errors import UserError

MEAN, STD = 1.5, 0.4
NOISE = torch.tensor([-2.0, -0.3, 0.0, 1.0], dtype=torch.float64)


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """Velocity E[eps - x0 | x_t] for data N(MEAN, STD^2) on the straight path."""
    alpha, sigma = 1 - t, t
    total = alpha**2 * STD**2 + sigma**2
    away = (x - alpha * MEAN) / total
    return sigma * away - (MEAN + alpha * STD**2 * away)


def quantiles(t: float) -> Tensor:
    """Where the exact flow has carried NOISE at time t: it maps quantiles onto quantiles."""
    return (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * STD**2 + t**2) * NOISE


def error(sampler: Callable[..., Tensor], steps: int, start: float, stop: float) -> float:
    sigmas = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    return (sampler(gaussian, quantiles(start), sigmas) - quantiles(stop)).abs().max().item()


@pytest.mark.parametrize("name", SAMPLERS)
def test_reaches_the_exact_solution(name: str) -> None:
    assert error(by_name(name), 400, 1.0, 0.0) < 5e-3


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2), (unipc, 2)])
def test_order_of_convergence(sampler: Callable[..., Tensor], order: int) -> None:
    """Between the ends, where the log signal-to-noise ratio that DPM-Solver steps in is finite."""
    slope = math.log2(error(sampler, 64, 0.9, 0.1) / error(sampler, 128, 0.9, 0.1))
    assert slope == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_point_is_found_in_one_step(name: str) -> None:
    """All data in one point: the flow lines are straight, so any number of steps is exact."""
    point = torch.tensor(3.0, dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return (x - point) / t

    for steps in (1, 2, 7):
        got = by_name(name)(denoise, NOISE, schedule(steps, 3.0).double())
        torch.testing.assert_close(got, point.expand(4))


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 10), ("heun", 19), ("dpmpp_2m", 10), ("unipc", 10)])
def test_evaluations_and_callback(name: str, evaluations: int) -> None:
    calls: list[float] = []
    steps: list[int] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return gaussian(x, t)

    by_name(name)(denoise, NOISE, schedule(10).double(), lambda i, x: steps.append(i))
    assert len(calls) == evaluations
    assert min(calls) > 0  # the model is never asked about clean data
    assert steps == list(range(1, 11))


def test_stopping_early_leaves_the_noise_of_that_time() -> None:
    sigmas = torch.linspace(1.0, 0.5, 200, dtype=torch.float64)
    for sampler in SAMPLERS.values():
        torch.testing.assert_close(sampler(gaussian, NOISE, sigmas), quantiles(0.5), atol=5e-3, rtol=0)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(UserError, match="sampler='ddim'"):
        by_name("ddim")
