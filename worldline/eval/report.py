"""Verdicts counted: rates with Wilson intervals, as a text table, JSON, a plot and a contact sheet of failures."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.errors import UserError
from worldline.media.preview import contact_sheet

ORDER = ("count", "colour", "shape", "motion", "relation", "camera", "size", "speed")  # columns, then any others
ALL = "all"
Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Rate:
    """`right` of `total`, with the Wilson score interval at 95 % (Wilson 1927)."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) when nothing was judged."""
        if not self.total:
            return 0.0, 1.0
        n, p, z2 = self.total, self.share, Z95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # Exact at the ends, where rounding would leave 1 - 1e-16.
        low = 0.0 if self.right == 0 else centre - half
        return low, 1.0 if self.right == n else centre + half

    def __str__(self) -> str:
        if not self.total:
            return "-"
        low, high = self.interval
        return f"{100 * self.share:.1f} [{100 * low:.0f}-{100 * high:.0f}]"


@dataclass(frozen=True)
class Verdict:
    """What the verifier said of one video: for every attribute its prompt asks for, whether it is right."""

    prompt: str
    seen: bool
    objects: int
    right: Mapping[str, bool]

    @property
    def obeyed(self) -> bool:
        """Everything that the prompt asks for is right."""
        return all(self.right.values())

    @property
    def wrong(self) -> list[str]:
        return [name for name, right in self.right.items() if not right]


@dataclass(frozen=True)
class Failure:
    """A video that did not obey: uint8 (T, H, W, 3), its prompt and what is wrong."""

    prompt: str
    wrong: Sequence[str]
    frames: np.ndarray


@dataclass(frozen=True)
class Report:
    """Verdicts per set: "model", the ceilings, the floor. `failures` are the model's first ones."""

    sets: Mapping[str, Sequence[Verdict]]
    failures: Sequence[Failure] = ()

    @property
    def attributes(self) -> list[str]:
        """Columns: every attribute that was judged, then "all"."""
        found = {name for verdicts in self.sets.values() for verdict in verdicts for name in verdict.right}
        return [name for name in ORDER if name in found] + sorted(found - set(ORDER)) + [ALL]

    def rates(self, name: str) -> dict[str, dict[str, Rate]]:
        """Group -> attribute -> rate, for one set. Groups: everything, seen, unseen, by number of objects."""
        verdicts = self.sets[name]
        groups: dict[str, list[Verdict]] = {"everything": list(verdicts)}
        groups["seen compositions"] = [v for v in verdicts if v.seen]
        groups["unseen compositions"] = [v for v in verdicts if not v.seen]
        for objects in sorted({v.objects for v in verdicts}):
            label = f"{objects} object{'s' if objects > 1 else ''}"
            groups[label] = [v for v in verdicts if v.objects == objects]
            for seen in (True, False):
                part = [v for v in groups[label] if v.seen == seen]
                groups[f"{label}, {'seen' if seen else 'unseen'}"] = part
        return {label: {a: _rate(members, a) for a in self.attributes} for label, members in groups.items() if members}

    def table(self) -> str:
        """Percent right with its 95 % interval; the model in every group, ceilings and floor in sum."""
        rows = [["", "n", *self.attributes]]
        for name in self.sets:
            groups = self.rates(name)
            shown: Iterable[str] = groups if name == "model" else [g for g in groups if g == "everything"]
            for group in shown:
                label = name if group == "everything" else f"  {group}"
                rates = groups[group]
                rows.append([label, str(rates[ALL].total), *(str(rates[a]) for a in self.attributes)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "percent right [95 % Wilson interval]; all = everything that the prompt asks for"])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: rates of every set and group, then every verdict."""
        return {
            "rates": {
                name: {
                    group: {
                        a: {"right": r.right, "total": r.total, "share": r.share, "interval": list(r.interval)}
                        for a, r in rates.items()
                        if r.total
                    }
                    for group, rates in self.rates(name).items()
                }
                for name in self.sets
            },
            "verdicts": {name: [dataclasses.asdict(v) for v in verdicts] for name, verdicts in self.sets.items()},
        }

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False)

    def failures_sheet(self, scale: int = 2) -> np.ndarray | None:
        """Contact sheet uint8 (H, W, 3) of the failures, or None when there is none."""
        if not self.failures:
            return None
        labels = [f"[wrong: {', '.join(failure.wrong)}] {failure.prompt}" for failure in self.failures]
        return contact_sheet([failure.frames for failure in self.failures], labels, scale=scale)

    def plot(self) -> bytes:
        """A PNG of the shares with their intervals. Raises UserError when matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UserError("plot: needs matplotlib; pip install 'worldline[train]'") from error
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for index, name in enumerate(self.sets):
            everything = self.rates(name)["everything"]
            _bars(left, index, len(self.sets), name, everything)
        left.set_xticks(range(len(self.attributes)), self.attributes)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(self.sets))
        first = next(iter(self.sets))
        groups = self.rates(first)
        _bars(right, 0, 1, first, {group: rates[ALL] for group, rates in groups.items()})
        right.set_xticks(range(len(groups)), groups, rotation=40, ha="right", fontsize="small")
        left.set_title("share right per attribute", fontsize="medium")
        right.set_title(f"everything right, {first}", fontsize="medium")
        for axes in (left, right):
            axes.set_ylim(0, 1.02)
            axes.grid(axis="y", alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return buffer.getvalue()

    def save(self, folder: str | Path) -> list[Path]:
        """Writes report.json, report.txt, report.png (with matplotlib) and failures.png, and returns their paths.

        Raises UserError for a full disk.
        """
        from worldline.media.write import write_bytes, write_image

        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        files = {"report.txt": (self.table() + "\n").encode(), "report.json": self.to_json().encode()}
        with contextlib.suppress(UserError):  # an optional extra: the figures are in the other two
            files["report.png"] = self.plot()
        for name, data in files.items():
            write_bytes(out / name, data)
        paths = [out / name for name in files]
        sheet = self.failures_sheet()
        if sheet is not None:
            write_image(out / "failures.png", sheet)
            paths.append(out / "failures.png")
        return paths


def _rate(verdicts: Iterable[Verdict], attribute: str) -> Rate:
    if attribute == ALL:
        judged = [v.obeyed for v in verdicts]
    else:
        judged = [v.right[attribute] for v in verdicts if attribute in v.right]
    return Rate(sum(judged), len(judged))


def _bars(axes: Any, index: int, count: int, name: str, rates: Mapping[str, Rate]) -> None:
    """One set of bars with intervals, beside `count - 1` others."""
    width = 0.8 / count
    places = [i - 0.4 + width * (index + 0.5) for i in range(len(rates))]
    shares = [0.0 if math.isnan(rate.share) else rate.share for rate in rates.values()]
    below = [max(0.0, share - rate.interval[0]) for share, rate in zip(shares, rates.values(), strict=True)]
    above = [max(0.0, rate.interval[1] - share) for share, rate in zip(shares, rates.values(), strict=True)]
    axes.bar(places, shares, width, label=name, yerr=[below, above], capsize=2, error_kw={"lw": 0.8})
