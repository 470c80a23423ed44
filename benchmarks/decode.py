"""Time and peak memory of decoding long, large video through the shipped autoencoder, each length in its own process.

    python -m benchmarks.decode [--size 1920x1080] [--seconds 4,60]

The latents are noise, made piece by piece, and every frame is written to an mp4, as `worldline generate` does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.generate.load import load
from worldline.generate.request import read_size
from worldline.media.write import write_growing
from worldline.shapes import VideoShape

FPS = 16


def decode(size: tuple[int, int], seconds: float) -> dict[str, float]:
    """Wall time in seconds and peak resident memory in MB of this process."""
    width, height = size
    frames = round(seconds * FPS)
    shape = VideoShape(frames, height, width).snapped()
    latent = shape.latent()
    pipeline = load()
    torch.manual_seed(0)

    def latents() -> Iterator[Tensor]:
        for _ in range(latent.frames):
            yield torch.randn(16, 1, latent.height, latent.width)

    def shown() -> Iterator[np.ndarray]:
        rest = frames
        for chunk in pipeline.codec.decode(latents()):
            yield from chunk[:rest, :height, :width]
            rest -= len(chunk[:rest])

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_growing(Path(folder) / "out.mp4", shown(), FPS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frames": frames, "seconds": time.perf_counter() - began, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--seconds", default="4,60", help="lengths of the videos")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # a child's length
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(decode(read_size(args.size), args.one)))
        return
    for seconds in args.seconds.split(","):
        command = [sys.executable, "-m", "benchmarks.decode", "--size", args.size, "--one", seconds]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        each = found["seconds"] / found["frames"] * 1000
        print(f"{args.size}, {found['frames']} frames: {found['seconds']:.0f} s, {each:.0f} ms a frame, peak "
              f"{found['peak_mb']:.0f} MB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
