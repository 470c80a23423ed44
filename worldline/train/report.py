"""The story of a run as one HTML file that opens anywhere: curves, samples, speed, machine and plan."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from worldline.media.write import write_bytes
from worldline.train.plan import clock, describe

WIDTH, HEIGHT, LEFT, FOOT = 330, 170, 52, 20  # of a chart, and of the room for its numbers, in pixels
SHEETS = 6  # contact sheets shown, spread over the run
SIDE = 1000  # pixels that a sheet is at most wide
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#7b4fa3", "#b5838d", "#8a6d00", "#444")
# What is drawn together, by how the names begin; all others have a chart of their own.
TOGETHER = ("val", "psnr", "world_score")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}
pre{background:#f5f5f3;padding:1em;overflow:auto;font-size:12px}h2{margin-top:2em}
.charts{display:flex;flex-wrap:wrap;gap:14px}figure{margin:0 0 1em}figcaption{font-size:12px;color:#555}
img{max-width:100%;display:block}svg text{font:10px system-ui,sans-serif;fill:#555}
table{border-collapse:collapse}td{padding:2px 14px 2px 0;vertical-align:top}
"""


def write_report(folder: str | Path, plan: Any, state: str) -> Path:
    """Writes `report.html` into a run's folder from its log and its samples; `state` says how it ended."""
    folder = Path(folder)
    records = read_log(folder / "log.jsonl")
    last = records[-1]["step"] if records else 0
    facts = {
        "run": f"{folder.name}: {state}, step {last} of {plan.loop.steps}",
        "machine": machine(plan.device),
        **timings(records),
        **last_values(records),
    }
    rows = "".join(f"<tr><td>{_text(name)}<td>{_text(value)}" for name, value in facts.items())
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{_text(plan.name)}</title><style>{STYLE}</style>",
        f"<h1>{_text(plan.name)}</h1><table>{rows}</table>",
        "<h2>Curves</h2><div class=charts>",
        *(chart(name, lines) for name, lines in curves(records).items()),
        "</div>",
        *samples(folder / "samples"),
        f"<h2>Plan</h2><pre>{_text(describe(plan))}</pre>",
    ]
    path = folder / "report.html"
    write_bytes(path, "\n".join(parts).encode("utf-8"))
    return path


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a line that a killed run cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def machine(device: str) -> str:
    """What computed, in one line."""
    name = platform.processor() or platform.machine()
    try:
        models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")]  # fmt: skip
        name = models[0] if models else name
    except OSError:
        pass
    here = f"{name}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}; torch {torch.__version__}"
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(device)}; {here}"
    return here


def timings(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Speed over the run: what its summaries say of the steps before each."""
    rates = [record["samples/s"] for record in records if record.get("samples/s")]
    if not rates:
        return {}
    facts = {"samples a second": f"{sum(rates) / len(rates):.3g} (from {min(rates):.3g} to {max(rates):.3g})"}
    for name, label in (("GFLOP/s", "GFLOP a second"), ("MFU", "share of the matrix products' rate")):
        values = [record[name] for record in records if name in record]
        if values:
            facts[label] = f"{sum(values) / len(values):.3g}"
    elapsed = [record["seconds"] for record in records if "seconds" in record]
    return {**facts, **({"time in steps": clock(elapsed[-1])} if elapsed else {})}


def last_values(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last measurement of everything that is not drawn as speed."""
    values: dict[str, str] = {}
    for record in records:
        values |= {name: f"{value:.4g}" for name, value in record.items() if _is_drawn(name, value)}
    skipped = [record["skipped"] for record in records if "skipped" in record]
    return values | ({"updates skipped": str(skipped[-1])} if skipped else {})


SPEED = ("samples/s", "GFLOP/s", "MFU", "seconds", "tokens/s")


def _is_drawn(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and name not in ("step", "skipped", *SPEED)


Line = list[tuple[int, float]]


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """(step, value) of every measurement, by chart and name."""
    charts: dict[str, dict[str, Line]] = {}
    for record in records:
        for name, value in record.items():
            if _is_drawn(name, value) or (name in SPEED[:3] and isinstance(value, int | float)):
                group = next((prefix for prefix in TOGETHER if name.startswith(prefix)), name)
                charts.setdefault(group, {}).setdefault(name, []).append((int(record["step"]), float(value)))
    return charts


def chart(title: str, lines: Mapping[str, Line]) -> str:
    """Lines over steps, as SVG; `title` above, the names of several below."""
    points = [point for line in lines.values() for point in line]
    steps, values = [step for step, _ in points], [value for _, value in points]
    first, last = min(steps), max(steps)
    if first == last:  # one step alone is in the middle, as is one value
        first, last = first - 1, last + 1
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    bottom, top = told_apart(low, high)

    def place(step: int, value: float) -> str:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - 8)
        return f"{x:.1f},{8 + (high - value) / (high - low) * (HEIGHT - FOOT - 8):.1f}"

    drawn = []
    for number, line in enumerate(lines.values()):
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<polyline fill=none stroke="{colour}" stroke-width=1.4 points="'
                     f'{" ".join(place(*point) for point in line)}"/>')  # fmt: skip
        at = place(*line[-1]).split(",")
        drawn.append(f'<circle cx={at[0]} cy={at[1]} r=2.5 fill="{colour}"/>')
    names = "".join(
        f'<span style="color:{COLOURS[n % len(COLOURS)]}">{_text(name)} {line[-1][1]:.4g}</span> &nbsp; '
        for n, (name, line) in enumerate(lines.items())
    )
    axes = (
        f'<rect x={LEFT} y=8 width={WIDTH - LEFT - 8} height={HEIGHT - FOOT - 8} fill="#fafaf8" stroke="#ddd"/>'
        f"<text x={LEFT - 4} y=16 text-anchor=end>{top}</text>"
        f"<text x={LEFT - 4} y={HEIGHT - FOOT} text-anchor=end>{bottom}</text>"
        f"<text x={LEFT} y={HEIGHT - 5}>{first}</text>"
        f"<text x={WIDTH - 8} y={HEIGHT - 5} text-anchor=end>{last}</text>"
    )
    svg = f'<svg width={WIDTH} height={HEIGHT} role=img aria-label="{_text(title)}">{axes}{"".join(drawn)}</svg>'
    return f"<figure><b>{_text(title)}</b><br>{svg}<figcaption>{names}</figcaption></figure>"


def told_apart(low: float, high: float) -> tuple[str, str]:
    """Two different numbers with as many digits as it takes to see that they are, three at least."""
    for digits in range(3, 17):
        written = f"{low:.{digits}g}", f"{high:.{digits}g}"
        if written[0] != written[1]:
            break
    return written


def samples(folder: Path) -> list[str]:
    """Some contact sheets, the last one first."""
    found = sorted(folder.glob("*.png"), reverse=True) if folder.is_dir() else []
    if not found:
        return []
    chosen = [found[round(i * (len(found) - 1) / max(1, SHEETS - 1))] for i in range(min(SHEETS, len(found)))]
    figures = []
    for path in dict.fromkeys(chosen):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((SIDE, 4 * SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        figures.append(f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{path.stem}</figcaption>'
                       "</figure>")  # fmt: skip
    return ["<h2>Samples</h2>", *figures]


def _text(value: str) -> str:
    return html.escape(value)
