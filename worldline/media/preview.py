"""Draws clips as one picture: contact sheets with labels, and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PAPER, INK = (250, 250, 248), (30, 30, 32)
MARGIN = 6  # pixels around every frame
LABEL_LINES = 2


def contact_sheet(
    clips: Sequence[np.ndarray],
    labels: Sequence[str] | None = None,
    columns_frames: int = 6,
    scale: int = 2,
) -> np.ndarray:
    """One row per clip uint8 (T, H, W, 3): evenly spaced frames, first and last included, label above.

    Frames are enlarged `scale` times without smoothing, so that every pixel can be seen. Clips may differ
    in size and length. Returns uint8 (H, W, 3).
    """
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"{len(labels)} labels for {len(clips)} clips")
    strips = [_strip(clip, columns_frames, scale) for clip in clips]
    width = max((strip.shape[1] for strip in strips), default=0) + 2 * MARGIN
    rows = []
    for index, strip in enumerate(strips):
        if labels is not None:
            rows.append(_label(labels[index], width))
        rows.append(_framed(strip, width))
    return np.concatenate(rows) if rows else np.full((MARGIN, MARGIN, 3), PAPER, np.uint8)


def thumbnail(clip: np.ndarray, size: int = 256) -> np.ndarray:
    """The middle frame of uint8 (T, H, W, 3), its longer side `size` pixels. Returns uint8 (h, w, 3)."""
    from PIL import Image

    frame = clip[len(clip) // 2]
    height, width = frame.shape[:2]
    factor = size / max(height, width)
    target = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(frame).resize(target, Image.Resampling.LANCZOS))


def sprites(frames: np.ndarray, columns: int = 4) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) in rows of `columns` without gaps, the last one filled with black. uint8 (h, w, 3)."""
    count, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    filled = np.concatenate([frames, np.zeros((rows * columns - count, height, width, 3), np.uint8)])
    return filled.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _strip(clip: np.ndarray, columns: int, scale: int) -> np.ndarray:
    """Evenly spaced frames side by side: uint8 (scale * H, about columns * scale * W, 3)."""
    count = min(columns, len(clip))
    picks = np.linspace(0, len(clip) - 1, count).round().astype(int)
    frames = clip[picks].repeat(scale, axis=1).repeat(scale, axis=2)  # (count, sH, sW, 3)
    gap = np.full((frames.shape[1], MARGIN, 3), PAPER, np.uint8)
    pieces = [piece for frame in frames for piece in (frame, gap)]
    return np.concatenate(pieces[:-1], axis=1)


def _framed(strip: np.ndarray, width: int) -> np.ndarray:
    page = np.full((strip.shape[0] + 2 * MARGIN, width, 3), PAPER, np.uint8)
    page[MARGIN:-MARGIN, MARGIN : MARGIN + strip.shape[1]] = strip
    return page


def _label(text: str, width: int) -> np.ndarray:
    """Text on paper, uint8 (h, width, 3), in as many lines as needed up to LABEL_LINES, then an ellipsis."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    lines = _wrapped(" ".join(text.split()), font, width - 2 * MARGIN)
    line_height = 16
    page = Image.new("RGB", (width, MARGIN + line_height * max(1, len(lines))), PAPER)
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + index * line_height), line, fill=INK, font=font)
    return np.asarray(page)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > LABEL_LINES:
        lines = lines[:LABEL_LINES]
        lines[-1] += " …"
    return [_shortened(line, font, width) for line in lines]


def _shortened(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
