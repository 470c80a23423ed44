"""The compute-optimal law: found again in losses that were made from it, with bands that hold what is true."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.train.law import Law, Point, fit, isoflops

TRUE = Law(0.3, 40.0, 0.35, 300.0, 0.4)


def ladder(noise: float = 0.0, law: Law = TRUE, seed: int = 0, tokens: tuple[float, float] = (1e6, 8e6)) -> list[Point]:
    """Five sizes, a few losses of each over a range of tokens."""
    rng = np.random.default_rng(seed)
    return [
        Point(f"{size:.0f}", size, seen, float(law.loss(size, seen)) * np.exp(noise * rng.standard_normal()))
        for size in (3e4, 1e5, 3e5, 6e5, 1e6)
        for seen in np.geomspace(*tokens, 7 if tokens[1] < 1e7 else 21).tolist()
    ]


def test_a_law_is_found_again_from_exact_losses() -> None:
    found = fit(ladder(), draws=4).law
    for name in ("floor", "size_power", "token_power"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.03)
    assert float(found.loss(1e7, 1e8)) == pytest.approx(float(TRUE.loss(1e7, 1e8)), rel=1e-3)


def test_a_larger_run_is_foretold_and_the_band_holds_it() -> None:
    inside = 0
    for seed in range(5):
        found = fit(ladder(0.003, seed=seed), draws=40, seed=seed)
        true = float(TRUE.loss(2e6, 1.6e7))
        assert float(found.law.loss(2e6, 1.6e7)) == pytest.approx(true, rel=0.03)
        low, high = found.loss_band(2e6, 1.6e7)
        assert low < high
        inside += bool(low <= true <= high)
    assert inside >= 3


def test_an_outlier_hardly_counts() -> None:
    points = ladder()
    wrong = Point(points[10].run, points[10].size, points[10].tokens, 1.3 * points[10].loss)
    found = fit([*points[:10], wrong, *points[11:]], draws=2).law
    assert float(found.loss(2e6, 1.6e7)) == pytest.approx(float(TRUE.loss(2e6, 1.6e7)), rel=0.01)


def test_the_frontier_is_the_best_split_of_compute() -> None:
    for compute in (1e12, 1e14):
        sizes = np.geomspace(1e4, 1e8, 4001)
        losses = TRUE.loss(sizes, compute / (6 * sizes))
        assert float(TRUE.optimal_size(compute)) == pytest.approx(float(sizes[losses.argmin()]), rel=0.01)
        assert float(TRUE.frontier(compute)) == pytest.approx(float(losses.min()), rel=1e-6)
    ratio = float(TRUE.optimal_size(1e14) / TRUE.optimal_size(1e12))
    assert ratio == pytest.approx(100**TRUE.exponent)


def test_curves_of_equal_compute_have_their_bottom_where_the_law_has_it() -> None:
    early = Law(0.3, 400.0, 0.6, 300.0, 0.4)  # whose best sizes lie among those of the ladder
    curves = isoflops(ladder(law=early, tokens=(1e5, 2e7)))
    assert curves
    for curve in curves:
        assert list(curve.sizes) == sorted(curve.sizes)
        for size, loss in zip(curve.sizes, curve.losses, strict=True):
            assert loss == pytest.approx(float(early.loss(size, curve.compute / (6 * size))), rel=5e-3)
    bottoms = [(curve.compute, curve.best) for curve in curves if curve.best is not None]
    assert bottoms
    for compute, best in bottoms:
        assert best == pytest.approx(float(early.optimal_size(compute)), rel=0.5)


def test_too_little_says_nothing() -> None:
    with pytest.raises(UserError, match="six of three sizes"):
        fit(ladder()[:7])
    assert isoflops(ladder()[:14]) == []
