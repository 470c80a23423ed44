"""The law on paper: losses and what was foretold, curves of equal compute, and the frontier, as one PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.errors import UserError

if TYPE_CHECKING:
    from worldline.train.scaling import Report

UNSEEN = "crimson"


def draw(report: Report) -> bytes:
    """A PNG of two panels, of three where there are curves of equal compute. Raises UserError when matplotlib is not
    installed."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plot: needs matplotlib; pip install 'worldline[train]'") from error
    count = 3 if report.isoflops else 2
    figure = Figure(figsize=(1 + 4 * count, 4.4), layout="constrained")
    axes = figure.subplots(1, count)
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(report.rungs)))
    colours = {rung.name: shade for rung, shade in zip(report.rungs, shades, strict=True)}
    colours |= {told.rung: UNSEEN for told in report.told}
    _losses(axes[0], report, colours)
    if report.isoflops:
        _isoflops(axes[1], report)
    _frontier(axes[-1], report, colours)
    for panel in axes:
        panel.set_xscale("log")
        panel.grid(alpha=0.25, which="both")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()


def _losses(axes: Any, report: Report, colours: dict[str, Any]) -> None:
    """Every run's loss by tokens, with the law through it; what was foretold as a band."""
    told = {told.rung: told for told in report.told}
    for rung in report.rungs:
        seen = [p for p in (*report.points, *report.unseen) if p.run == rung.name]
        reach = np.geomspace(min((p.tokens for p in seen), default=rung.tokens / 4), rung.tokens, 50)
        label = f"{rung.name}, {rung.parameters / 1e6:.2f} M"
        if rung.name in told:
            label += ": not fitted"
            axes.fill_between(reach, *report.fit.loss_band(rung.size, reach), color=UNSEEN, alpha=0.2, lw=0)
        axes.plot(reach, report.fit.law.loss(rung.size, reach), color=colours[rung.name], lw=1)
        mark = "*" if rung.name in told else "o"
        style = {"ls": "", "marker": mark, "ms": 9 if rung.name in told else 4, "color": colours[rung.name]}
        axes.plot([p.tokens for p in seen], [p.loss for p in seen], label=label, **style)
    axes.set(xlabel="tokens seen, D", ylabel="validation loss", title="losses, and the law (lines)")
    axes.legend(fontsize="x-small")


def _isoflops(axes: Any, report: Report) -> None:
    """Loss by size at equal compute, with parabolas."""
    for curve in report.isoflops:
        (line,) = axes.plot(curve.sizes, curve.losses, "o", ms=4, label=f"{curve.compute:.1e} FLOP")
        fine = np.geomspace(curve.sizes[0], curve.sizes[-1], 50)
        if len(curve.sizes) >= 3:
            bow = np.polyfit(np.log(curve.sizes), np.log(curve.losses), 2)
            axes.plot(fine, np.exp(np.polyval(bow, np.log(fine))), lw=1, color=line.get_color())
        axes.plot(fine, report.fit.law.loss(fine, curve.compute / (6 * fine)), ls=":", lw=1, color=line.get_color())
    axes.set(xlabel="multiply-adds a token, N", title="equal compute (dotted: the law)")
    axes.legend(fontsize="x-small")


def _frontier(axes: Any, report: Report, colours: dict[str, Any]) -> None:
    """Every run's loss by compute, and the least that the law allows, with its band."""
    for rung in report.rungs:
        seen = [p for p in (*report.points, *report.unseen) if p.run == rung.name]
        axes.plot([p.compute for p in seen], [p.loss for p in seen], "o-", ms=3, lw=0.8, color=colours[rung.name])
    computes = [p.compute for p in (*report.points, *report.unseen)]
    reach = np.geomspace(min(computes), 4 * max(*computes, *(rung.compute for rung in report.rungs)), 60)
    low, high = report.fit.band([law.frontier(reach) for law in report.fit.others])
    axes.fill_between(reach, low, high, color="0.5", alpha=0.3, lw=0)
    axes.plot(reach, report.fit.law.frontier(reach), color="black", lw=1.2, label="compute-optimal, 90 % band")
    for told in report.told:
        rung = next(rung for rung in report.rungs if rung.name == told.rung)
        below, above = told.predicted - told.interval[0], told.interval[1] - told.predicted
        bar = {"yerr": [[below], [above]], "capsize": 3, "ms": 5, "mfc": "white", "color": UNSEEN}
        axes.errorbar([rung.compute], [told.predicted], fmt="s", label=f"foretold: {told.rung}", **bar)
    axes.set(xlabel="training FLOP, C", title="loss by compute")
    axes.legend(fontsize="x-small")
