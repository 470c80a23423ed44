"""How fast training is, how near to its bare products and attention, and what saving costs it.

    python -m benchmarks.train                                              the shipped model's shapes, this machine
    python -m benchmarks.train --width 2048 --depth 24 --latents 21x60x104 --samples 1 --device cuda --compile

A round is some whole steps (forward, backward, clipping, update, average; the samples lie ready) and then, in the same
process, the roofline: every matrix product that the model makes in them, with its own weights, and attention at its
shapes, forward and backward, with nothing between them. So other load on the machine meets both. `roofline` is the
median of roofline time over step time; MFU is against the fastest matmul measured here. At the end as many steps are
made with checkpoints and the time that they were waited for is told. Under torchrun all processes take part.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.dit.model import DiTConfig
from worldline.dit.patchify import grid
from worldline.nn.memory import keep_freed_memory
from worldline.parallel.mesh import Crew, ParallelPlan, join, leave
from worldline.train.dit import TEXT_TOKENS, build
from worldline.train.dit_plan import DiTPlan
from worldline.train.flow import Sample, assemble, flow_terms, pack_of
from worldline.train.loop import matmul_peak
from worldline.train.plan import LoopPlan, torch_rng
from worldline.train.run import Pack, Run, Task

PROMPT = "a large red ball rolls to the right over a green floor"


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--width", type=int, default=256)
    add("--depth", type=int, default=6)
    add("--heads", type=int, default=0, help="head dimension 64 below width 1024, else 128, unless given")
    add("--latents", default="5x8x8", help="frames x height x width of a sample's latents")
    add("--samples", type=int, default=24, help="of a pack; each process has one pack in a step")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--device", default="cpu")
    add("--context", type=int, default=1, help="processes that share a pack")
    add("--recompute", choices=("none", "selective", "full"), default="none")
    add("--compile", action="store_true")
    add("--rounds", type=int, default=8)
    add("--steps", type=int, default=4, help="of a round")
    add("--save-every", type=int, default=500, help="steps between checkpoints, for their cost")
    add("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    replicas = max(1, _processes() // options.context)
    parallel = ParallelPlan(replicas, context=options.context, recompute=options.recompute, compile=options.compile)
    crew = join(parallel, options.device)
    figures = measure(options, plan_of(options, parallel), crew)
    leave()
    if not crew.first:
        return
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:22} {value:.4g}" if isinstance(value, float) else f"{name:22} {value}")


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def plan_of(options: argparse.Namespace, parallel: ParallelPlan) -> DiTPlan:
    """The plan of a model without learned positions, whose rotary channels fit its heads."""
    heads = options.heads or options.width // (64 if options.width < 1024 else 128)
    dim = options.width // heads
    side = dim * 3 // 16 * 2
    axes = (dim - 2 * side, side, side)
    config = DiTConfig(width=options.width, depth=options.depth, heads=heads, rope_axes=axes)
    loop = LoopPlan(steps=1_000_000, keep=1)
    return DiTPlan(config=config, dtype=options.dtype, device=options.device, loop=loop, parallel=parallel)


def measure(options: argparse.Namespace, plan: DiTPlan, crew: Crew) -> dict[str, float | int | str]:
    """All figures; times are medians over the rounds."""
    shape = (plan.config.in_channels, *map(int, options.latents.split("x")))
    tokens = math.prod(grid(shape, plan.config.patch))
    dtype = getattr(torch, plan.dtype)
    model = build(plan).to(crew.device)
    size = sum(parameter.numel() for parameter in model.parameters())
    pack = pack_at(plan, shape, options.samples, crew)
    task = Task(
        model=model,
        pack=lambda step, number: pack,
        loss=lambda module, batch: flow_terms(module, batch, crew.device),
        samples=options.samples * crew.replicas,
        dtype=dtype,
        sequence=(model.dit, plan.config.heads),
    )
    shapes = products(model, pack, crew.device)
    with tempfile.TemporaryDirectory() as where:
        run = Run(task, plan, Path(where), crew, print)
        with crew.watched() as run.doing:
            rows = [x.flatten(0, -2).to(dtype) for x in shapes["rows"]]
            weights = [w.to(crew.device, dtype) for w in shapes["weights"]]
            qkv = (options.samples, plan.config.heads, tokens, plan.config.head_dim)
            roof = lambda: bare(rows, weights, qkv, plan.config.depth, crew)  # noqa: E731
            step = lambda: [run.advance() for _ in range(options.steps)]  # noqa: E731
            rounds = [(timed(step, crew), options.steps * timed(roof, crew)) for _ in range(options.rounds + 2)][2:]
            saving = stall(run, options.save_every, statistics.median(s for s, _ in rounds) / options.steps, crew)
    seconds = statistics.median(s for s, _ in rounds) / options.steps
    work = 3.0 * options.samples * model.dit.flops(tokens, TEXT_TOKENS) * crew.replicas
    peak = matmul_peak(crew.device, dtype, 4096 if crew.device.type == "cuda" else 1024) * 1e9 * crew.size
    return {
        "device": torch.cuda.get_device_name(crew.device) if crew.device.type == "cuda" else "cpu",
        "processes": crew.size,
        "parameters": size,
        "tokens a step": tokens * options.samples * crew.replicas,
        "step, s": seconds,
        "samples/s": options.samples * crew.replicas / seconds,
        "tokens/s": tokens * options.samples * crew.replicas / seconds,
        "TFLOP/s": work / seconds / 1e12,
        "MFU": work / seconds / peak,
        "roofline": statistics.median(r / s for s, r in rounds),
        **saving,
    }


def pack_at(plan: DiTPlan, shape: tuple[int, ...], count: int, crew: Crew) -> Pack:
    """A pack of random samples, each at its own time, with one caption."""
    noise = torch_rng(plan.seed, 0, f"benchmark-{crew.replica}")
    clean = [torch.randn(shape, generator=noise) for _ in range(count)]
    samples = [Sample(x, torch.zeros(1, *shape[1:]), range(shape[1])) for x in clean]
    batch = assemble(plan, samples, torch.rand(count, generator=noise), [PROMPT] * count, noise)
    return pack_of(replace(batch.to(crew.device), words=torch_rng(0, 0, "words")), [])


@torch.no_grad()
def products(model: nn.Module, pack: Pack, device: torch.device) -> dict[str, list[Tensor]]:
    """Input and weight of every linear layer, in the order of one forward pass."""
    found: dict[str, list[Tensor]] = {"rows": [], "weights": []}

    def record(module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        found["rows"].append(inputs[0].detach().clone())
        found["weights"].append(module.weight.detach().clone())

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, nn.Linear)]
    model(pack.data, device)
    for hook in hooks:
        hook.remove()
    return found


def bare(rows: list[Tensor], weights: list[Tensor], qkv: tuple[int, ...], depth: int, crew: Crew) -> None:
    """The products alone, with those of the gradients of inputs and weights, and attention forward and backward."""
    for x, weight in zip(rows, weights, strict=True):
        y = F.linear(x, weight)
        torch.mm(y, weight)
        torch.mm(y.t(), x)
    q = torch.randn(qkv, device=crew.device, dtype=rows[0].dtype)
    for _ in range(depth):
        if crew.device.type == "cuda":
            q = q.detach().requires_grad_()
            F.scaled_dot_product_attention(q, q, q).backward(q.detach())
            continue
        scores = (q @ q.transpose(-1, -2)).softmax(-1)
        out = scores @ q
        scores.transpose(-1, -2) @ out
        scores = out @ q.transpose(-1, -2)
        scores @ q
        scores.transpose(-1, -2) @ q


def timed(call: Callable[[], object], crew: Crew) -> float:
    """Seconds."""
    if crew.device.type == "cuda":
        torch.cuda.synchronize(crew.device)
    start = time.perf_counter()
    call()
    if crew.device.type == "cuda":
        torch.cuda.synchronize(crew.device)
    return time.perf_counter() - start


def stall(run: Run, every: int, step: float, crew: Crew) -> dict[str, float]:
    """Three saves, each with steps beside it until it is written: the share of wall time that training waits when it
    saves every so many steps, and by how much the steps beside a save are slower."""
    waits, beside, writing = [], [], []
    for _ in range(3):
        before, began = run.saver.stalled, time.perf_counter()
        run.save()
        waits.append(run.saver.stalled - before)
        busy = True
        while busy:
            beside.append(timed(run.advance, crew))
            busy = any(crew.gather(run.saver.writing()))
        writing.append(time.perf_counter() - began)
    wait, whole = statistics.median(waits), every * step
    slower = statistics.median(writing) * max(0.0, 1 - step / statistics.median(beside))
    return {
        "save waits, s": wait,
        "save writes, s": statistics.median(writing),
        "save stall, share": wait / whole,
        "with slower steps": (wait + slower) / whole,
    }


if __name__ == "__main__":
    main()
