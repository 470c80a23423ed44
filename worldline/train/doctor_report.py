"""The doctor's report: one HTML file with its plots and thumbnails inside, to be opened anywhere."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from worldline.media.clips import read_clips
from worldline.media.write import write_bytes
from worldline.train.doctor import Examined, Landing

SHOWN = 48  # thumbnails of learned clips, and as many of the others
SIDE = 112

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}
pre{background:#f5f5f3;padding:1em;overflow:auto}h2{margin-top:2em}
.clips{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:224px;font-size:12px}
figure img{display:block;max-width:224px;background:#ddd}figcaption{overflow-wrap:anywhere}
.no{color:#a31515}svg text{font:11px system-ui,sans-serif}
table{border-collapse:collapse;font-size:12px}td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #eee}
"""


def report(found: Examined, path: Path, recipe: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes the report; thumbnails of some clips are decoded for it."""
    learned, left = _some(found.kept), _some([x for x in found.landings if not x.kept])
    pictures = thumbnails([*learned, *left], progress)
    tokens = [landing.fit.tokens for landing in found.kept]
    broken = [f"<tr><td>{_text(source)}<td>{_text(reason)}" for source, reason in found.broken]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>worldline doctor</title><style>{STYLE}</style>",
        f"<h1>worldline doctor</h1><p>recipe <b>{_text(recipe)}</b></p><pre>{_text(found.table())}</pre>",
        "<h2>Where clips land</h2>", bars(found.buckets),
        "<h2>Tokens of a clip</h2>", histogram(tokens, "tokens"),
        "<h2>Words of a caption</h2>", histogram(found.captions["counts"], "words"),
        f"<p>Not known to the text encoder: {_text(', '.join(found.captions['unknown'])) or 'none'}</p>",
        "<h2>Not learned</h2>", bars(found.reasons), f"<table>{''.join(broken)}</table>",
        _gallery(left, pictures), "<h2>Learned</h2>", _gallery(learned, pictures),
    ]  # fmt: skip
    write_bytes(path, "\n".join(parts).encode("utf-8"))


def _some(landings: Sequence[Landing]) -> list[Landing]:
    return [landings[i] for i in np.unique(np.linspace(0, len(landings) - 1, min(SHOWN, len(landings))).astype(int))]


def thumbnails(landings: Sequence[Landing], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """JPEGs of the first and the middle frame side by side, base64, by clip id; none of what cannot be decoded."""
    out = {}
    clips = [landing.example.clip for landing in landings]
    for number, (clip, frames) in enumerate(read_clips(clips, lambda count: [0, count // 2]), 1):
        if isinstance(frames, np.ndarray):
            pair = [_small(frame) for frame in frames]
            buffer = io.BytesIO()
            Image.fromarray(np.concatenate(pair, 1)).save(buffer, "JPEG", quality=80)
            out[clip.id] = base64.b64encode(buffer.getvalue()).decode("ascii")
        if progress:
            progress(number, len(clips))
    return out


def _small(frame: np.ndarray) -> np.ndarray:
    scale = SIDE / max(frame.shape[:2])
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _gallery(landings: Sequence[Landing], pictures: dict[str, str]) -> str:
    return f"<div class=clips>{''.join(_figure(x, pictures.get(x.example.clip.id)) for x in landings)}</div>"


def _figure(landing: Landing, picture: str | None) -> str:
    clip = landing.example.clip
    lands = landing.fit.name if landing.kept else f"<span class=no>{_text(landing.fit.reason)}</span>"
    said = landing.example.captions[0].text if landing.example.captions else ""
    image = f'<img src="data:image/jpeg;base64,{picture}" alt="">' if picture else ""
    where = f"{Path(clip.source).name} {clip.start:.2f}-{clip.end:.2f} s"
    return f"<figure>{image}<figcaption>{_text(where)}<br>{lands}<br><i>{_text(said)}</i></figcaption></figure>"


def histogram(values: Sequence[int], what: str, bins: int = 24) -> str:
    """Bars of how many values fall between equally spaced edges."""
    if not values:
        return "<p>none</p>"
    low, high = min(values), max(values)
    if high - low < bins:
        return bars(Counter(f"{value} {what}" for value in sorted(values)), by_count=False)
    counts, edges = np.histogram(values, bins, (low, high))
    names = [f"{a:.0f} to {b:.0f} {what}" for a, b in itertools.pairwise(edges)]
    return bars(Counter(dict(zip(names, counts.tolist(), strict=True))), by_count=False)


def bars(counts: Counter[str], by_count: bool = True) -> str:
    """Horizontal bars, as SVG."""
    if not counts:
        return "<p>none</p>"
    items = counts.most_common(40) if by_count else list(counts.items())
    most = max(count for _, count in items)
    rows = [
        f"<text x=230 y={20 * i + 15} text-anchor=end>{_text(name[:38])}</text>"
        f'<rect x=240 y={20 * i + 4} width={max(1, 600 * count / max(1, most)):.0f} height=14 fill="#4a7fb5"/>'
        f"<text x={246 + 600 * count / max(1, most):.0f} y={20 * i + 15}>{count}</text>"
        for i, (name, count) in enumerate(items)
    ]
    return f"<svg width=920 height={20 * len(items) + 8}>{''.join(rows)}</svg>"


def _text(value: str) -> str:
    return html.escape(value)
