"""Films with known content and known faults, made here; real footage is not needed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from tests.media.clips import write_foreign


def scene(seed: int, frames: int = 36, height: int = 96, width: int = 128, drift: bool = True) -> np.ndarray:
    """A texture of its own that may drift, under a disc that then moves the other way: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    texture = _texture(rng, 2 * height, 2 * width)
    colour, speed = rng.uniform(0, 255, 3), drift * rng.integers(1, 3, 2)  # whole pixels: no shake
    y, x = np.mgrid[:height, :width].astype(float)
    clip = []
    for t in range(frames):
        top, left = (speed * t) % (height, width)
        picture = texture[top : top + height, left : left + width].copy()
        distance = np.hypot(y - height * (0.7 - 0.01 * t * drift), x - width * (0.8 - 0.015 * t * drift))
        picture[distance < height / 6] = colour
        clip.append(picture)
    return np.round(np.stack(clip)).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth coloured noise of several sizes, float (height, width, 3) in 20 .. 235."""
    import cv2

    total = np.zeros((height, width, 3))
    for cells in (3, 8, 24, 64):
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.4
    low, high = total.min(), total.max()
    return 20 + 215 * (total - low) / (high - low)


def write_film(path: Path, clip: np.ndarray, rate: int = 24, codec: str = "libx264", **options: object) -> Path:
    try:
        return write_foreign(path, clip, codec, rate=rate, **options)  # type: ignore[arg-type]
    finally:
        if codec == "libsvtav1":  # it leaves who calls it as root with real-time priority, before all other processes
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def overwrite_packets(path: Path, share: float = 0.5) -> Path:
    """Zeros in the middle of eight packets in the middle of the film."""
    import av

    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.pos is not None and p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[len(packets) // 2 - 4 : len(packets) // 2 + 4]:
        first = position + size // 4
        data[first : first + int(size * share)] = bytes(int(size * share))
    path.write_bytes(data)
    return path


def cut_file(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def claim_seconds(path: Path, seconds: int) -> Path:
    """Lets a film in Matroska claim another duration in its header (element 0x4489, a double)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", seconds * 1000.0)
    tag = data.find(b"00:00:0")  # the same per stream, as text
    data[tag : tag + 8] = b"%02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)
    path.write_bytes(data)
    return path


def claim_seconds_mp4(path: Path, seconds: int) -> Path:
    """Lets the index of an mp4 claim another duration (ISO 14496-12, 8.2.2, version 0)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"mvhd") + 4
    scale = int.from_bytes(data[at + 12 : at + 16], "big")
    data[at + 16 : at + 20] = (seconds * scale).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def write_sound(path: Path) -> Path:
    """An mp4 with a second of noise and no pictures."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        noise = (np.random.default_rng(0).standard_normal((1, 16000)) * 0.1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
