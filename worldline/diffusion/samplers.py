"""Samplers: functions that carry noise to data along the velocity field of a rectified flow."""

from __future__ import annotations

import math
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
    the one to 0. Equal to DPMSolverMultistepScheduler of diffusers (midpoint) on sigmas that end at 0; it also takes
    its last step in order 1 where the sigmas end above 0, which here is a step like any other.
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


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """UniPC, order 2, B(h) = e^h - 1, data prediction: one evaluation a step (Zhao et al. 2023, UniPC, sec. 3).

    With h the step in log(alpha / sigma), s its start, t its end, m the data predictions and D = (m_r - m_s) / r the
    slope towards the step before, whose start lies r h < 0 from s:

        x_t = sigma_t / sigma_s x_s + w (m_s + D / 2)                       predictor, w = alpha_t (1 - e^-h)
        x_t = sigma_t / sigma_s x_s + w (m_s + a D + c (m_t - m_s))         corrector, see `_corrector`

    The corrector uses m_t of the predicted x_t, which the next step needs anyway. The first step has no D and the
    last is the predictor without D, as published with Wan 2.1 and in diffusers. Sigmas must fall strictly.
    """
    times = sigmas.double().tolist()
    ratio = [_log_ratio(t) for t in times]
    before = straight = x  # data prediction at the last start; x carried on with it alone
    slope, weight = torch.zeros_like(x), 0.0
    blend = (0.0, 0.5)  # the corrector's a and c
    for i, (now, then) in enumerate(pairwise(times)):
        x0 = x - now * denoise(x, sigmas[i])
        if i > 0:
            x = straight + weight * (blend[0] * slope + blend[1] * (x0 - before))
        scale = then / now
        weight = (1 - then) - (1 - now) * scale  # alpha_t (1 - e^-h), also where h is infinite
        straight = scale * x + weight * x0
        if 0 < i < len(times) - 2:
            h = ratio[i + 1] - ratio[i]
            r = (ratio[i - 1] - ratio[i]) / h
            slope, blend = (before - x0) / r, _corrector(h, r)
            x = straight + weight / 2 * slope
        else:
            x = straight
        before = x0
        if callback:
            callback(i + 1, x)
    return x


def _log_ratio(t: float) -> float:
    """log(alpha / sigma), -inf at t = 1 and inf at t = 0."""
    if t >= 1:
        return -math.inf
    return math.inf if t <= 0 else math.log1p(-t) - math.log(t)


def _corrector(h: float, r: float) -> tuple[float, float]:
    """a and c of UniPC's corrector: a + c = b1 and r a + c = b2, the moments of e^-h over the step (UniPC, sec. 3)."""
    grown = -1 / math.expm1(-h)
    b1 = grown - 1 / h
    b2 = grown - 2 * b1 / h
    a = (b1 - b2) / (1 - r)
    return a, b1 - a


SAMPLERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "unipc": unipc}


def by_name(name: str) -> Callable[..., Tensor]:
    """A sampler by the name that configs and the command line use."""
    if name not in SAMPLERS:
        raise UserError(f"sampler={name!r}: choose {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
