"""The doctor's report: one HTML file with its plots and thumbnails inside, to be opened anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from worldline.media.report import (
    bars,
    figure,
    gallery,
    histogram,
    refusal,
    said,
    some,
    text,
    thumbnails,
    write_page,
)
from worldline.train.doctor import Examined, Landing

SHOWN = 48  # thumbnails of learned clips, and as many of the others


def report(found: Examined, path: Path, recipe: str, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes the report; thumbnails of some clips are decoded for it."""
    learned, left = some(found.kept, SHOWN), some([x for x in found.landings if not x.kept], SHOWN)
    pictures = thumbnails([landing.example.clip for landing in (*learned, *left)], progress)
    tokens = [landing.fit.tokens for landing in found.kept]
    broken = [f"<tr><td>{text(source)}<td>{text(reason)}" for source, reason in found.broken]
    parts = [
        f"<p>recipe <b>{text(recipe)}</b></p><pre>{text(found.table())}</pre>",
        "<h2>Where clips land</h2>", bars(found.buckets),
        "<h2>Tokens of a clip</h2>", histogram(tokens, "tokens"),
        "<h2>Words of a caption</h2>", histogram(found.captions["counts"], "words"),
        f"<p>Not known to the text encoder: {text(', '.join(found.captions['unknown'])) or 'none'}</p>",
        "<h2>Not learned</h2>", bars(found.reasons), f"<table>{''.join(broken)}</table>",
        _gallery(left, pictures), "<h2>Learned</h2>", _gallery(learned, pictures),
    ]  # fmt: skip
    write_page(path, "worldline doctor", parts)


def _gallery(landings: Sequence[Landing], pictures: dict[str, str]) -> str:
    return gallery(_figure(landing, pictures.get(landing.example.clip.id)) for landing in landings)


def _figure(landing: Landing, picture: str | None) -> str:
    lands = landing.fit.name if landing.kept else refusal(landing.fit.reason)
    return figure(landing.example.clip, picture, [lands, *map(said, landing.example.captions[:1])])
