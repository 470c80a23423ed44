"""Noise paths x_t = alpha(t) x0 + sigma(t) eps, and every conversion between what a model may predict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from worldline.errors import UserError

Prediction = Literal["velocity", "epsilon", "v", "x0"]
Denoise = Callable[[Tensor, Tensor], Tensor]


class Path(Protocol):
    """alpha(t) and sigma(t) with their derivatives, for t in [0, 1]; t = 0 is data, t = 1 noise."""

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def alpha_rate(self, t: Tensor) -> Tensor: ...

    def sigma_rate(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - t) x0 + t eps; velocity eps - x0 (Liu et al. 2022, eq. 1, with time reversed)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1 with alpha = cos(pi t / 2) (Nichol & Dhariwal 2021, eq. 17, without offset)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * math.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * math.pi / 2)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -self.sigma(t) * math.pi / 2

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.alpha(t) * math.pi / 2


def per_item(t: Tensor, x: Tensor) -> Tensor:
    """t () or (B,), shaped to broadcast over x (B, ...)."""
    return t if t.dim() == 0 else t.reshape(t.shape + (1,) * (x.dim() - t.dim()))


def add_noise(path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t of data x0 (B, ...) and noise eps (B, ...) at t () or (B,)."""
    t = per_item(t, x0)
    return path.alpha(t) * x0 + path.sigma(t) * eps


def target(path: Path, kind: Prediction, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a model of this kind should answer.

    velocity = dx_t/dt; v = alpha eps - sigma x0 (Salimans & Ho 2022, sec. 4, sign as in their appendix D).
    """
    t = per_item(t, x0)
    if kind == "velocity":
        return path.alpha_rate(t) * x0 + path.sigma_rate(t) * eps
    if kind == "v":
        return path.alpha(t) * eps - path.sigma(t) * x0
    if kind == "epsilon":
        return eps
    if kind == "x0":
        return x0
    raise UserError(f"prediction={kind!r}: choose velocity, epsilon, v or x0")


def split(path: Path, kind: Prediction, predicted: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The (x0, eps) that a prediction at x_t implies: two linear equations, solved by Cramer's rule.

    x_t = alpha x0 + sigma eps and predicted = a x0 + b eps. Where they coincide (epsilon at sigma = 1, x0 at
    sigma = 0) the missing half does not exist; ask at another t.
    """
    t = per_item(t, x_t)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    a, b = target(path, kind, one, zero, t), target(path, kind, zero, one, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    determinant = alpha * b - sigma * a
    return (b * x_t - sigma * predicted) / determinant, (alpha * predicted - a * x_t) / determinant


def convert(path: Path, kind: Prediction, to: Prediction, predicted: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """A prediction of one kind as another. predicted, x_t (B, ...); t () or (B,)."""
    if kind == to:
        return predicted
    x0, eps = split(path, kind, predicted, x_t, t)
    return target(path, to, x0, eps, t)


def as_rectified_flow(predict: Denoise, kind: Prediction, path: VariancePreserving) -> Denoise:
    """A variance-preserving model as the rectified flow that the samplers integrate.

    With s = alpha + sigma, x_vp / s lies on the straight path at time sigma / s, so one change of scale and
    time serves every sampler. Time is kept off the ends, where an epsilon or x0 model says only half.
    """

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        flow_time = time.clamp(1e-4, 1 - 1e-4)
        t = torch.atan2(flow_time, 1 - flow_time) * 2 / math.pi  # sigma / alpha = tan(pi t / 2)
        scale = per_item(path.alpha(t) + path.sigma(t), x)
        x0, eps = split(path, kind, predict(x * scale, t), x * scale, t)
        return eps - x0

    return denoise
