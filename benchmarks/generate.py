"""Where the time of `worldline generate` goes, and how near the transformer comes to bare matrix products.

    python -m benchmarks.generate [--model DIR] [--json] [--threads N]

Cold: a fresh process from the shell's point of view, imports included. Warm: stages inside this process, median of
several runs. The roofline is the time of only the matrix products and attention of the same shapes, type and
threads, measured in this process beside the transformer; `share` is that time over the transformer's. Without a
shipped model, untrained weights of the same size take its place: the time is the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldline.checkpoints.folder import Parts, save_pretrained
from worldline.checkpoints.layout import SHIPPED
from worldline.dit.model import TINY, DiT, DiTConfig
from worldline.dit.told import Told
from worldline.generate.load import load
from worldline.generate.pipeline import Pipeline
from worldline.nn.attention import Segments, attention
from worldline.text import WordConfig, WordTransformer
from worldline.vae.latents import Whitening
from worldline.vae.model import VideoVAE
from worldline.worlds.captions import vocabulary

PROMPT = "a red ball rolls to the right past a blue cube"


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(args.model) if args.model else SHIPPED if SHIPPED.is_dir() else untrained(Path(scratch) / "model")
        figures = measure(model, Path(scratch), args.runs)
    print(json.dumps(figures, indent=2) if args.json else table(figures))


def untrained(folder: Path) -> Path:
    """A model folder of the shipped size with random weights."""
    text = WordTransformer(WordConfig(words=tuple(vocabulary()), width=TINY.text_width))
    parts = Parts(VideoVAE(), DiT(TINY), text, Whitening.identity(TINY.in_channels))
    return save_pretrained(parts, folder)


def measure(model: Path, scratch: Path, runs: int) -> dict[str, Any]:
    """All figures, in seconds unless named otherwise."""
    cold = {
        "help": shell([sys.executable, "-m", "worldline.cli", "--help"]),
        "imports": shell([sys.executable, "-c", "import worldline.generate.load"]),
        "generate": shell(
            [sys.executable, "-m", "worldline.cli", "generate", PROMPT, "--model", str(model)]
            + ["--overwrite", "-o", str(scratch / "cold.mp4")]
        ),
    }
    start = time.perf_counter()
    pipeline = load(model)
    warm: dict[str, list[float]] = {}
    loaded = time.perf_counter() - start
    shapes: list[tuple[int, int]] = []
    for _ in range(runs + 1):
        result = pipeline.generate(PROMPT)
        start = time.perf_counter()
        result.save(scratch / "warm.mp4")
        stages = {**result.timings, "encode": time.perf_counter() - start}
        for name, seconds in stages.items():
            warm.setdefault(name, []).append(seconds)
        shapes = [(int(result.metadata["steps"]), len(result.frames))]
    stages = {name: statistics.median(values[1:]) for name, values in warm.items()}  # the first run warms up
    steps, frames = shapes[0]
    height, width = result.frames.shape[1:3]
    tokens = ((frames - 1) // 4 + 1) * -(-height // 16) * -(-width // 16)
    words = int(pipeline.denoiser.text.encode([PROMPT]).cu_seqlens[1])
    bare, per_step = roofline(pipeline, tokens, words, runs)
    gflop = (pipeline.experts.dit.flops(tokens, words) + pipeline.experts.dit.flops(tokens, 1)) / 1e9
    return {
        "model": str(model) if model == SHIPPED else "untrained" if "tmp" in str(model) else str(model),
        "clip": f"{width}x{height}, {frames} frames, {steps} steps",
        "threads": torch.get_num_threads(),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "cold": cold,
        "warm": {"load": loaded, **stages},
        "dit_forward": per_step,
        "dit_roofline": bare,
        "dit_share": bare / per_step,
        "dit_gflop_per_s": gflop / per_step,
    }


def shell(command: list[str], runs: int = 3) -> float:
    """Best wall time of a command in a fresh process."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def roofline(pipeline: Pipeline, tokens: int, words: int, runs: int) -> tuple[float, float]:
    """Seconds of (the bare products and attention, the transformer) for one guided step, measured in turns."""
    dit, dtype = pipeline.experts.dit, pipeline.dtype
    config = dit.config
    n, m = 2 * tokens, words + 1  # guided: with the prompt, and with the null prompt of one token
    cu = torch.tensor([0, tokens, n])
    cu_text = torch.tensor([0, words, m])
    coords = torch.zeros(n, 3, dtype=torch.long)
    x = torch.randn(n, config.token_width)
    told = Told(torch.randn(m, config.text_width, dtype=dtype), cu_text)
    known, mask = torch.zeros(n, config.token_width, dtype=dtype), torch.zeros(n, config.cells, dtype=dtype)
    products = bare_products(config, n, m, cu, cu_text, dtype)

    def forward() -> None:
        dit(x, coords, cu, torch.full((n,), 0.5), told, known, mask)

    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(4 * runs):  # in turns, so that a busy machine slows both
            for function, found in zip((products, forward), times, strict=True):
                start = time.perf_counter()
                for _ in range(5):
                    function()
                found.append((time.perf_counter() - start) / 5)
    return min(times[0]), min(times[1])


def bare_products(
    config: DiTConfig, n: int, m: int, cu: torch.Tensor, cu_text: torch.Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    """Every matrix product and attention of one forward pass, on ready operands, and nothing else."""
    w, hidden = config.width, round(config.width * config.mlp_ratio)
    inner = [(n, w, 3 * w), (n, w, w), (n, w, w), (m, w, 2 * w), (n, w, w), (n, w, hidden), (n, hidden, w)]
    outer = [(n, 2 * config.token_width + config.cells, w), (m, config.text_width, w), (n, w, config.token_width)]
    pairs = [
        (torch.randn(rows, k, dtype=dtype), torch.randn(columns, k, dtype=dtype))
        for rows, k, columns in inner * config.depth + outer
    ]
    q, k, v = (torch.randn(n, config.heads, config.head_dim, dtype=dtype) for _ in range(3))
    kt, vt = (torch.randn(m, config.heads, config.head_dim, dtype=dtype) for _ in range(2))
    segments, text_segments = Segments(cu), Segments(cu_text)

    def run() -> None:
        for a, b in pairs:
            torch.nn.functional.linear(a, b)
        for _ in range(config.depth):
            attention(q, k, v, segments)
            attention(q, kt, vt, segments, text_segments)

    return run


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{figures['clip']}; {figures['threads']} threads, {figures['dtype']}; model: {figures['model']}", ""]
    for group in ("cold", "warm"):
        lines += [f"{group:5} {name:10} {seconds:8.3f} s" for name, seconds in figures[group].items()]
    lines.append(
        f"\nDiT, one guided step: {1000 * figures['dit_forward']:.1f} ms, "
        f"{figures['dit_gflop_per_s']:.0f} GFLOP/s; its products and attention alone "
        f"{1000 * figures['dit_roofline']:.1f} ms: share {100 * figures['dit_share']:.0f} %"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
