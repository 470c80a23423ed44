"""Figures of the data engine, one row each, on this machine.

    python -m benchmarks.data loader [--n 400]     samples/s from shards (one seek each) and from raw clips
    python -m benchmarks.data packing [--n 600]    packs beside padding to the longest and beside buckets of one shape

Times are CPU seconds of one thread, which other jobs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from worldline.data.dataset import open_dataset
from worldline.data.loader import Loader
from worldline.data.packing import Packer
from worldline.data.shards import Shards
from worldline.media.write import write_video
from worldline.recipes.clips import dit as recipe
from worldline.train.clips import shards_of, source_of
from worldline.train.dit import build
from worldline.train.dit_plan import DiTPlan, cost_of
from worldline.train.flow import Sample, TextToVideo, assemble, flow_loss
from worldline.train.plan import torch_rng
from worldline.train.vae import load as load_vae
from worldline.train.vae import vae_hash
from worldline.worlds.captions import caption
from worldline.worlds.render import render
from worldline.worlds.scene import sample_scene

# Latent shapes (T', H', W') and how often each is drawn: pictures, short and long clips, portrait and landscape.
SHAPES = {(1, 8, 8): 3, (5, 8, 8): 4, (5, 8, 12): 3, (5, 12, 8): 3, (9, 8, 8): 2, (9, 12, 16): 1, (17, 12, 16): 1}
RANKS = 8


def loader(n: int) -> None:
    """Random reads of `n` samples from shards, and from the mp4 files that they were made of."""
    sizes = [(64, 64), (96, 64), (64, 96)]
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        for i in range(32):
            rng = np.random.default_rng(i)
            scene = sample_scene(rng)
            width, height = sizes[i % len(sizes)]
            write_video(videos / f"{i:03}.mp4", render(scene, 17, height, width).frames, 16)
            (videos / f"{i:03}.txt").write_text(caption(scene, rng))
        plan = recipe()
        began = time.process_time()
        shards_of(open_dataset(videos), plan, f"{folder}/shards", 16)
        print(f"shards: {32 / (time.process_time() - began):.1f} clips/s decoded, encoded and written")
        vae = load_vae(plan.vae)
        encoder = load_vae(plan.vae).to(torch.bfloat16)
        raw = source_of(replace(plan, data=str(videos)), encoder, vae_hash(vae))
        for name, source, count in (("shards", Shards(f"{folder}/shards"), n), ("raw clips", raw, min(n, 48))):
            batches = Loader(source, 24 * 120, 0, cost=cost_of(plan))
            done, step, began = 0, 0, time.process_time()
            while done < count:
                done += len(batches.batch(step))
                step += 1
            print(f"loader, {name}: {done / (time.process_time() - began):.0f} samples/s")


def packing(n: int) -> None:
    """Samples/s of forward and backward, all ways over the same samples; a step lasts as long as its slowest rank."""
    plan = replace(recipe(), encoder="words")
    model = build(plan).to(torch.bfloat16)
    shapes = list(SHAPES)
    drawn = np.random.default_rng(0).choice(len(shapes), n, p=np.array(list(SHAPES.values())) / sum(SHAPES.values()))
    tokens = np.array([t * (h // 2) * (w // 2) for t, h, w in shapes])
    longest, budget = int(tokens.max()), 4 * int(tokens.max())
    seconds = {}  # of a batch, by the shapes in it: measured once for each

    def cost(batch: tuple[int, ...]) -> float:
        key = tuple(sorted(batch))
        if key not in seconds:
            seconds[key] = step_seconds(plan, model, [shapes[i] for i in key])
        return seconds[key]

    print(f"{n} samples of {len(shapes)} shapes, {tokens.min()} to {longest} tokens, packs of {budget}, {RANKS} ranks")
    packer = Packer(tokens[drawn], budget, 0, RANKS, cost_of(plan))
    packs = [[tuple(int(drawn[i]) for i in pack) for pack in step] for step in packer.steps(0)]
    report = packer.report()
    padded = _steps([(int(tokens.argmax()),) * 4] * -(-n // 4))
    ways = {"packs": packs, "padded to the longest": padded, "buckets, 4 of one shape": _steps(buckets(drawn, 4))}
    fair = [budget // int(size) for size in tokens]
    ways["buckets, as many as fit the budget"] = _steps(buckets(drawn, fair))
    rates = {}
    for name, steps in ways.items():
        each = [[cost(batch) for batch in step] for step in steps]
        spent = sum(max(step) for step in each)
        rates[name] = n / spent
        idle = 1 - sum(map(sum, each)) / (RANKS * spent)
        ratio = rates["packs"] / rates[name]
        print(f"{name}: {rates[name]:.1f} samples/s, ranks idle {idle:.1%}, packs are {ratio:.2f} times as fast")
    useful = tokens[drawn].sum() / (n * longest)
    print(f"useful tokens: packs 100 % (no padding; {report['filled']:.1%} of the budget), padded {useful:.1%}")


def buckets(drawn: np.ndarray, sizes: int | list[int]) -> list[tuple[int, ...]]:
    """Batches of one shape, in random order, as trainers with buckets draw them; the last of each may be short."""
    batches = []
    for kind in np.unique(drawn).tolist():
        count, size = int((drawn == kind).sum()), sizes if isinstance(sizes, int) else sizes[kind]
        batches += [(kind,) * min(size, count - start) for start in range(0, count, size)]
    return [batches[i] for i in np.random.default_rng(1).permutation(len(batches))]


def _steps(batches: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    return [batches[i : i + RANKS] for i in range(0, len(batches), RANKS)]


def step_seconds(plan: DiTPlan, model: TextToVideo, shapes: list[tuple[int, int, int]]) -> float:
    """CPU seconds of one forward and backward of a batch of these latent shapes, the better of two."""
    noise = torch_rng(0, 0, "bench")
    samples = [Sample(torch.randn(plan.config.in_channels, *s), torch.zeros(1, *s), range(s[0])) for s in shapes]
    prompts = ["a red ball rolls to the right on a grey floor"] * len(samples)
    best = float("inf")
    for _ in range(2):
        batch = assemble(plan, samples, torch.full((len(samples),), 0.5), prompts, noise)
        began = time.process_time()
        flow_loss(model, batch, torch.device("cpu"))[0].backward()
        best = min(best, time.process_time() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = {"loader": (loader, 400), "packing": (packing, 600)}
    parser.add_argument("row", choices=list(rows))
    parser.add_argument("--n", type=int, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, n = rows[args.row]
    run(n if args.n is None else args.n)


if __name__ == "__main__":
    main()
