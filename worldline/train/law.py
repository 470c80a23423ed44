"""How a loss falls with a model's size and with what it has seen: the compute-optimal law, fitted with its uncertainty.

L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, eq. 2). N are the multiply-adds that a token costs in one
forward pass: the parameters, but for those that act once per sample, plus attention (half of M in DeepSeek-AI 2024,
section 3.1). So training on D tokens takes C = 6 N D operations exactly, however small the model is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import least_squares

from worldline.errors import UserError

HUBER = 1e-3  # residuals of log L beyond it count linearly (Hoffmann et al. 2022, appendix D.3)
WEBB = np.sqrt([0.5, 1.0, 1.5])  # magnitudes of the six weights of the wild bootstrap


@dataclass(frozen=True)
class Point:
    """A measured loss: of the run with that name, of N multiply-adds a token, after D tokens."""

    run: str
    size: float
    tokens: float
    loss: float

    @property
    def compute(self) -> float:
        """Floating-point operations of training."""
        return 6.0 * self.size * self.tokens


@dataclass(frozen=True)
class Law:
    """The five constants of the law."""

    floor: float  # E: what no model of this kind gets below on this data
    size_scale: float  # A
    size_power: float  # alpha
    token_scale: float  # B
    token_power: float  # beta

    def loss(self, size: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """L(N, D), elementwise."""
        small = self.size_scale / np.asarray(size, float) ** self.size_power
        early = self.token_scale / np.asarray(tokens, float) ** self.token_power
        return np.asarray(self.floor + small + early)

    def optimal_size(self, compute: np.ndarray | float) -> np.ndarray:
        """N that reaches the lowest loss with so many operations (Hoffmann et al. 2022, eq. 4)."""
        total = self.size_power + self.token_power
        ratio = self.size_power * self.size_scale / (self.token_power * self.token_scale)
        return np.asarray(ratio ** (1 / total) * (np.asarray(compute, float) / 6) ** self.exponent)

    @property
    def exponent(self) -> float:
        """N grows with compute to this power; D to one minus it."""
        return self.token_power / (self.size_power + self.token_power)

    def frontier(self, compute: np.ndarray | float) -> np.ndarray:
        """The lowest loss with so many operations."""
        size = self.optimal_size(compute)
        return self.loss(size, np.asarray(compute, float) / (6 * size))


@dataclass(frozen=True)
class Fit:
    """The law that fits best, and refits to data that might as well have been measured."""

    law: Law
    others: tuple[Law, ...]
    spread: float  # root mean square of the residuals of log L

    def band(self, values: Sequence[np.ndarray], share: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the middle `share` of what the refits say."""
        edge = (1 - share) / 2
        low, high = np.quantile(np.stack(list(values)), (edge, 1 - edge), axis=0)
        return low, high

    def loss_band(self, size: np.ndarray | float, tokens: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """90 % band of L(N, D)."""
        return self.band([law.loss(size, tokens) for law in self.others])

    def as_dict(self) -> dict[str, object]:
        """The constants with their 90 % intervals, and the exponent of compute."""
        names = list(asdict(self.law))
        ends = {name: self.band([np.asarray(getattr(law, name)) for law in self.others]) for name in names}
        low, high = self.band([np.asarray(law.exponent) for law in self.others])
        return {
            **{name: {"value": getattr(self.law, name), "interval": [float(e) for e in ends[name]]} for name in names},
            "exponent": {"value": self.law.exponent, "interval": [float(low), float(high)]},
            "spread": self.spread,
        }


def fit(points: Sequence[Point], draws: int = 200, seed: int = 0) -> Fit:
    """The law of least Huber loss on log L, from many starts, with `draws` refits.

    Losses of one run are not independent: they are one trajectory. So a refit draws one weight per run, by which all
    of its residuals are multiplied: the wild cluster bootstrap, with six weights because runs are few (Webb 2014).

    Raises UserError for fewer than three sizes or six points, which no such law can be told from.
    """
    sizes = {point.size for point in points}
    if len(points) < 6 or len(sizes) < 3:
        raise UserError(f"scaling: {len(points)} losses of {len(sizes)} sizes say nothing; six of three sizes at least")
    n, d, loss = (np.array([getattr(p, name) for p in points], float) for name in ("size", "tokens", "loss"))
    centre = math.exp(np.log(n).mean()), math.exp(np.log(d).mean())
    low = float(loss.min())
    starts = [
        np.array([math.log(low * floor), math.log(low * rest), math.log(alpha), math.log(low * rest), math.log(beta)])
        for floor in (0.3, 0.8)
        for rest in (0.1, 0.5)
        for alpha in (0.2, 0.6)
        for beta in (0.2, 0.6)
    ]
    solved = [_solve(start, n, d, loss, centre) for start in starts]
    best = min(solved, key=lambda answer: float(answer.cost))
    law = _law(best.x, centre)
    fitted = law.loss(n, d)
    residuals = np.log(loss / fitted)
    widened = residuals * math.sqrt(len(points) / max(1, len(points) - 5))  # five constants took their share
    rng = np.random.default_rng(seed)
    names = sorted({point.run for point in points})
    place = np.array([names.index(point.run) for point in points])
    others = []
    for _ in range(draws):
        weights = rng.choice(WEBB, len(names)) * rng.choice((-1.0, 1.0), len(names))
        others.append(_law(_solve(best.x, n, d, fitted * np.exp(widened * weights[place]), centre).x, centre))
    return Fit(law, tuple(others), float(np.sqrt(np.square(residuals).mean())))


def _solve(start: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, centre: tuple[float, float]):  # type: ignore[no-untyped-def]
    """Least Huber loss in logarithms of (E, A / N0^alpha, alpha, B / D0^beta, beta), at the middle (N0, D0) of the
    data: there the scales hardly depend on the powers."""
    log_n, log_d, goal = np.log(n / centre[0]), np.log(d / centre[1]), np.log(loss)

    def residuals(x: np.ndarray) -> np.ndarray:
        small, early = x[1] - np.exp(x[2]) * log_n, x[3] - np.exp(x[4]) * log_d
        return np.asarray(np.logaddexp(np.logaddexp(x[0], small), early) - goal)

    bounds = [-12.0, -12.0, math.log(0.02), -12.0, math.log(0.02)], [3.0, 3.0, math.log(3.0), 3.0, math.log(3.0)]
    return least_squares(residuals, np.clip(start, *bounds), bounds=bounds, loss="huber", f_scale=HUBER)


def _law(x: np.ndarray, centre: tuple[float, float]) -> Law:
    floor, small, alpha, early, beta = np.exp(x).tolist()
    return Law(floor, small * centre[0] ** alpha, alpha, early * centre[1] ** beta, beta)


@dataclass(frozen=True)
class IsoFlop:
    """Losses of several sizes at one compute, and the size at the bottom of a parabola through them, if it has one."""

    compute: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    best: float | None


def isoflops(points: Sequence[Point], levels: int = 5) -> list[IsoFlop]:
    """Curves at computes that three sizes or more have passed through (Hoffmann et al. 2022, approach 2).

    Between two measurements of a run log L is a line in log D.
    """
    runs: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.tokens):
        runs.setdefault(point.run, []).append(point)
    ends = sorted((run[0].compute, run[-1].compute) for run in runs.values())
    if len(ends) < 3:
        return []
    low, high = sorted(first for first, _ in ends)[2], sorted(last for _, last in ends)[-3]
    if high <= low:
        return []
    return [_isoflop(list(runs.values()), c) for c in np.geomspace(low, high, levels).tolist()]


def _isoflop(runs: Sequence[Sequence[Point]], compute: float) -> IsoFlop:
    sizes, losses = [], []
    for run in sorted(runs, key=lambda run: run[0].size):
        if run[0].compute * (1 - 1e-9) <= compute <= run[-1].compute * (1 + 1e-9):
            at = np.interp(math.log(compute), [math.log(p.compute) for p in run], [math.log(p.loss) for p in run])
            sizes.append(run[0].size)
            losses.append(math.exp(at))
    best = None
    if len(sizes) >= 3:
        bend, slope, _ = np.polyfit(np.log(sizes), np.log(losses), 2)
        bottom = math.exp(-slope / (2 * bend)) if bend > 0 else math.nan
        best = bottom if sizes[0] <= bottom <= sizes[-1] else None
    return IsoFlop(compute, tuple(sizes), tuple(losses), best)
