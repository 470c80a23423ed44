"""Pieces of reports that are one HTML file with pictures and plots inside, to be opened anywhere."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from worldline.media.clips import read_clips
from worldline.media.write import write_bytes
from worldline.records import SURE, Caption, Clip

Item = TypeVar("Item")
SIDE = 112  # longer side of one of the two pictures of a clip

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
pre{background:#f5f5f3;padding:1em;overflow:auto}h2{margin-top:2em}h3{margin:1.6em 0 .4em}
.clips{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:224px;font-size:12px}
figure img,.none{display:block;max-width:224px;background:#ddd}.none{height:63px}
figcaption{overflow-wrap:anywhere}.no{color:#a31515}.note{color:#666}svg text{font:11px system-ui,sans-serif}
table{border-collapse:collapse;font-size:12px}td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #eee}
"""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Writes the parts, which are HTML, as one page; atomically."""
    head = (
        f"<!doctype html><meta charset=utf-8><title>{text(title)}</title><style>{STYLE}</style><h1>{text(title)}</h1>"
    )
    write_bytes(path, "\n".join([head, *parts]).encode("utf-8"))


def some(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, spread evenly."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))]


def thumbnails(clips: Sequence[Clip], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """JPEGs of the first and the middle frame side by side, base64, by clip id; none of what cannot be decoded."""
    out = {}
    for number, (clip, frames) in enumerate(read_clips(clips, lambda count: [0, count // 2]), 1):
        if isinstance(frames, np.ndarray):
            buffer = io.BytesIO()
            Image.fromarray(np.concatenate([_small(frame) for frame in frames], 1)).save(buffer, "JPEG", quality=80)
            out[clip.id] = base64.b64encode(buffer.getvalue()).decode("ascii")
        if progress:
            progress(number, len(clips))
    return out


def _small(frame: np.ndarray) -> np.ndarray:
    scale = SIDE / max(frame.shape[:2])
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def figure(clip: Clip, picture: str | None, lines: Iterable[str]) -> str:
    """A clip: its picture of `thumbnails`, where it comes from, and lines of HTML about it."""
    shown = f'<img src="data:image/jpeg;base64,{picture}" alt="">' if picture else "<div class=none></div>"
    where = f"{text(Path(clip.source).name)} {clip.start:.2f}-{clip.end:.2f} s"
    return f"<figure>{shown}<figcaption>{'<br>'.join([where, *filter(None, lines)])}</figcaption></figure>"


def gallery(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return f"<div class=clips>{''.join(figures)}</div>"


def refusal(reason: str) -> str:
    """Why not, so that it catches the eye."""
    return f"<span class=no>{text(reason)}</span>"


def said(caption: Caption) -> str:
    """A caption with who said it; where a captioner knows how sure it was of its words, so does the reader."""
    who = caption.model
    if caption.sure is not None:
        who += f", sure of {caption.sure:.0%} a word"
        who += ": outside the domain that it knows" if caption.sure < SURE else ""
    return (
        f"<i>{text(caption.text)}</i> <span class=note>({text(who)})</span>" if who else f"<i>{text(caption.text)}</i>"
    )


def histogram(values: Sequence[float], what: str, bins: int = 24) -> str:
    """Bars of how many values fall between equally spaced edges."""
    if not values:
        return "<p>none</p>"
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values) and high - low < bins:
        return bars(Counter(f"{value} {what}" for value in sorted(values)), by_count=False)
    counts, edges = np.histogram(values, bins, (low, high))
    names = [f"{a:.3g} to {b:.3g} {what}" for a, b in itertools.pairwise(edges)]
    return bars(Counter(dict(zip(names, counts.tolist(), strict=True))), by_count=False)


def bars(counts: Counter[str], by_count: bool = True) -> str:
    """Horizontal bars, as SVG."""
    if not counts:
        return "<p>none</p>"
    items = counts.most_common(40) if by_count else list(counts.items())
    most = max(count for _, count in items)
    rows = [
        f"<text x=230 y={20 * i + 15} text-anchor=end>{text(name[:38])}</text>"
        f'<rect x=240 y={20 * i + 4} width={max(1, 600 * count / max(1, most)):.0f} height=14 fill="#4a7fb5"/>'
        f"<text x={246 + 600 * count / max(1, most):.0f} y={20 * i + 15}>{count}</text>"
        for i, (name, count) in enumerate(items)
    ]
    return f"<svg width=920 height={20 * len(items) + 8}>{''.join(rows)}</svg>"


def text(value: str) -> str:
    """Escaped for HTML."""
    return html.escape(value)
