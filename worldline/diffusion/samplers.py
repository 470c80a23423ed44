"""Samplers: functions that carry noise to data along the velocity field of a rectified flow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from worldline.errors import UserError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""denoise(x, t ()) -> velocity dx/dt = eps - x0, of x's shape."""
Callback = Callable[[int, Tensor], None]
"""callback(steps done, x), after every step."""


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Euler's method, order 1: one evaluation a step.

    Args:
        x: noise at sigmas[0].
        sigmas: (steps + 1,) times, descending; the last is the time of the result.
    """
    for i, (now, then) in enumerate(pairwise(sigmas)):
        x = x + (then - now) * denoise(x, now)
        if callback:
            callback(i + 1, x)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Heun's method, order 2: two evaluations a step, but one in a step that ends at 0 (EDM, alg. 1)."""
    for i, (now, then) in enumerate(pairwise(sigmas)):
        velocity = denoise(x, now)
        predicted = x + (then - now) * velocity
        if then > 0:
            velocity = (velocity + denoise(predicted, then)) / 2
            predicted = x + (then - now) * velocity
        x = predicted
        if callback:
            callback(i + 1, x)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M), order 2 with one evaluation a step (Lu et al. 2022, alg. 2; alpha = 1 - t, sigma = t).

    First order where the log signal-to-noise ratio is infinite: in the step from 1, the one after it and
    the one to 0.
    """
    previous: Tensor | None = None
    ratio = (1 - sigmas.double()).log() - sigmas.double().log()  # lambda, -inf at t = 1, +inf at t = 0
    for i, (now, then) in enumerate(pairwise(sigmas)):
        x0 = x - now * denoise(x, now)
        direction = x0
        if previous is not None and then > 0 and torch.isfinite(ratio[i - 1]):
            r = (ratio[i] - ratio[i - 1]) / (ratio[i + 1] - ratio[i])
            direction = x0 + (x0 - previous) / (2 * r).to(x0)
        scale = then / now
        x = scale * x + ((1 - then) - (1 - now) * scale) * direction
        previous = x0
        if callback:
            callback(i + 1, x)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def by_name(name: str) -> Callable[..., Tensor]:
    """A sampler by the name that configs and the command line use."""
    if name not in SAMPLERS:
        raise UserError(f"sampler={name!r}: choose {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
