"""How near the transformer comes to its bare matrix products and attention, forward and in training.

    python -m benchmarks.dit_roofline [--preset tiny] [--videos 32] [--dtype bfloat16] [--threads N] [--json]

Every `nn.Linear` of the model is recorded with its input in one forward pass; the roofline is those products with
the model's own weights, plus the adapter's attention at its shapes, with nothing between them. Model and roofline
take turns in one process, so that other load on the machine meets both; `share` is the median over the rounds of
roofline time over model time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.dit.model import PRESETS, DiT, DiTConfig
from worldline.dit.patchify import patchify
from worldline.nn.memory import keep_freed_memory

LATENTS = (5, 8, 8)  # 17 frames of 64 x 64
WORDS = 14  # tokens of a usual prompt


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--videos", type=int, default=32, help="samples packed together")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    figures = measure(PRESETS[options.preset], options.videos, getattr(torch, options.dtype), options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name in ("forward", "training"):
        part = figures[name]
        print(
            f"{name:9} {part['model_ms']:8.1f} ms  roofline {part['roofline_ms']:8.1f} ms  share {part['share']:.0%}"
            f"  {part['samples_per_s']:7.1f} samples/s  {part['gflop_per_s']:6.0f} GFLOP/s"
        )


def measure(config: DiTConfig, videos: int, dtype: torch.dtype, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of a forward pass without gradients and of a forward and backward pass."""
    torch.manual_seed(0)
    model = DiT(config).to(dtype)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    inputs = packed_inputs(config, videos, dtype)
    tokens = len(inputs[0]) // videos
    products = recorded_products(model, inputs)
    heads, dim = config.heads, config.head_dim
    q, k = (torch.randn(videos * heads, n, dim).to(dtype) for n in (tokens, WORDS))
    pairs = [(q, q), (q, k)] * config.depth
    flops = videos * model.flops(tokens, WORDS)

    with torch.no_grad():
        forward = turns(partial(model, *inputs), lambda: bare(products, pairs, train=False), rounds)
    training = turns(lambda: train_once(model, inputs), lambda: bare(products, pairs, train=True), rounds)
    return {
        name: part | {"samples_per_s": videos / part["model_ms"] * 1e3, "gflop_per_s": work / part["model_ms"] / 1e6}
        for name, part, work in (("forward", forward, flops), ("training", training, 3 * flops))
    }


def packed_inputs(config: DiTConfig, videos: int, dtype: torch.dtype) -> list[Tensor]:
    """What the model takes, for samples each at its own timestep."""
    tokens, coords = patchify(torch.randn(videos, config.in_channels, *LATENTS), config.patch)
    per_sample = len(tokens) // videos
    return [
        tokens.to(dtype),
        coords,
        torch.arange(videos + 1) * per_sample,
        torch.rand(videos).repeat_interleave(per_sample),
        torch.randn(videos * WORDS, config.text_width).to(dtype),
        torch.arange(videos + 1) * WORDS,
    ]


def recorded_products(model: DiT, inputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Input (N, in) and weight (out, in) of every linear layer, in the order of the forward pass."""
    found: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        found.append((arguments[0].detach().clone(), module.weight.detach()))

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def bare(products: list[tuple[Tensor, Tensor]], pairs: list[tuple[Tensor, Tensor]], train: bool) -> None:
    """The products and softmax alone; in training also those of their gradients, of inputs and weights."""
    for x, weight in products:
        y = F.linear(x, weight)
        if train:
            torch.mm(y, weight)
            torch.mm(y.t(), x)
    for q, k in pairs:
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        out = torch.bmm(weights, k)
        if train:
            torch.bmm(weights.transpose(1, 2), out)
            weights = torch.bmm(out, k.transpose(1, 2))
            torch.bmm(weights, k)
            torch.bmm(weights.transpose(1, 2), q)


def train_once(model: DiT, inputs: list[Tensor]) -> None:
    """One forward and backward pass, the optimiser left out."""
    model(*inputs).float().square().mean().backward()
    for parameter in model.parameters():
        parameter.grad = None


def turns(model: Callable[[], object], roofline: Callable[[], object], rounds: int) -> dict[str, float]:
    """Both, one after the other, `rounds` times after two unmeasured ones."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        model()
        between = time.perf_counter()
        roofline()
        times.append((between - start, time.perf_counter() - between))
    times = times[2:]
    return {
        "model_ms": 1e3 * statistics.median(m for m, _ in times),
        "roofline_ms": 1e3 * statistics.median(r for _, r in times),
        "share": statistics.median(r / m for m, r in times),
    }


if __name__ == "__main__":
    main()
