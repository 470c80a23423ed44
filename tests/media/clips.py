"""Small clips with known content, and files as other programs write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def ball_clip(frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    """A soft-edged red ball that crosses a grey-blue gradient: uint8 (T, H, W, 3)."""
    y, x = np.mgrid[:height, :width].astype(float)
    clip = []
    for i in range(frames):
        floor = np.stack([200 - 60 * y / height, 190 - 40 * y / height, 180 - 20 * x / width], -1)
        distance = np.hypot(y - height * 0.6, x - width * (0.2 + 0.6 * i / frames))
        inside = np.clip(height * 0.18 - distance, 0, 1)[..., None]
        clip.append(floor * (1 - inside) + np.array([210.0, 40, 40]) * inside)
    return np.round(np.stack(clip)).astype(np.uint8)


def grey_clip(levels: Sequence[int], height: int = 16, width: int = 16) -> np.ndarray:
    """One flat grey per frame, so that a frame can be recognised after any codec."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def write_foreign(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    tick: Fraction = Fraction(1, 1000),
    rate: int = 10,
    rotation: int | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Path:
    """A file as another program would write it; `ticks` are presentation times in units of `tick`."""
    source = "rgba" if frames.shape[-1] == 4 else "rgb24"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "4"} if "x264" in codec else {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        if ticks is not None:
            stream.codec_context.time_base = tick
            stream.time_base = tick
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if prepare:
            prepare(stream)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, source).reformat(format=pixel_format)
            frame.pts = ticks[i] if ticks is not None else i
            frame.time_base = tick if ticks is not None else Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
