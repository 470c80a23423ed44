"""Which encoder should condition the shipped model? Reads attributes back from token states, on held-out captions.

    python -m benchmarks.text [--steps 400] [--json out.json]

Each encoder gets the same reader: one learned query per attribute attends over the token states (one head, values
and keys linear) and a linear layer names the class. Captions come from the world grammar: train scenes for
training, held-out compositions for the first score. The second score is on `freeform_prompts.json`: 50 sentences by
hand, with synonyms and word orders that the grammar never says; the third is on the same sentences with foreign
words read as `worldline.worlds.synonyms` says. "all" is the share of prompts whose attributes are all right.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldline.nn.attention import attention
from worldline.text import MiniLM, TextEncoder, TextStates, WordConfig, WordTransformer
from worldline.worlds.captions import caption, vocabulary
from worldline.worlds.scene import COLOURS, EVENTS, MOTIONS, SHAPES, Scene, sample_scene
from worldline.worlds.synonyms import synonyms

CLASSES: dict[str, list[str]] = {
    "motion": list(MOTIONS),
    "event": list(EVENTS),
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "colour2": ["none", *COLOURS],
    "shape2": ["none", *SHAPES],
}
FREEFORM = Path(__file__).with_name("freeform_prompts.json")
Labelled = tuple[list[str], Tensor]  # prompts, (B, attributes) class numbers


class Reader(nn.Module):
    """One attention query per attribute over packed states, then a linear classifier."""

    def __init__(self, encoder: nn.Module | None, width: int, inner: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapt = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner))
        self.query = nn.Parameter(torch.randn(len(CLASSES), inner))
        self.key, self.value = nn.Linear(inner, inner), nn.Linear(inner, inner)
        self.heads = nn.ModuleList(nn.Linear(inner, len(names)) for names in CLASSES.values())

    def forward(self, text: TextStates) -> list[Tensor]:
        """(B, classes) logits for each attribute."""
        x = self.adapt(text.states)
        batch, queries = len(text.cu_seqlens) - 1, len(CLASSES)
        q = self.query.repeat(batch, 1)[:, None]  # (B * attributes, 1, inner)
        places = torch.arange(batch + 1) * queries
        read = attention(q, self.key(x)[:, None], self.value(x)[:, None], places, text.cu_seqlens)
        read = read.view(batch, queries, -1)
        return [head(read[:, i]) for i, head in enumerate(self.heads)]


def labels(scene: Scene) -> list[int]:
    """Class numbers of a scene of one or two things."""
    first, *rest = scene.things
    named = rest[0] if rest and not scene.group else None
    values = [first.motion, scene.event, first.colour, first.shape]
    values += [named.colour, named.shape] if named else ["none", "none"]
    return [names.index(value) for names, value in zip(CLASSES.values(), values, strict=True)]


def draw(rng: np.random.Generator, count: int, split: str) -> Labelled:
    """Captions of scenes in which the reader's attributes are defined: up to two things, or a group of equals."""
    prompts, rows = [], []
    while len(prompts) < count:
        scene = sample_scene(rng, split)
        pair = scene.count == 2 and not scene.group
        if scene.count > 2 and not scene.group:
            continue
        if pair and scene.things[0].motion == "still" and not scene.event:
            continue  # "red left of blue" and "blue right of red" name the same scene: no first thing
        prompts.append(caption(scene, rng, str(rng.choice(("short", "paraphrase", "paraphrase", "dense")))))
        rows.append(labels(scene))
    return prompts, torch.tensor(rows)


def freeform() -> Labelled:
    """The hand-written prompts."""
    entries = json.loads(FREEFORM.read_text(encoding="utf-8"))
    rows = []
    for entry in entries:
        second = entry["second"] or {"colour": "none", "shape": "none"}
        values = [entry[name] for name in ("motion", "event", "colour", "shape")]
        values += [second["colour"], second["shape"]]
        rows.append([names.index(value) for names, value in zip(CLASSES.values(), values, strict=True)])
    return [entry["prompt"] for entry in entries], torch.tensor(rows)


def train(reader: Reader, encode: Callable[[list[str]], TextStates], data: Labelled, steps: int, seed: int) -> None:
    """AdamW, one cycle, batches of 32 drawn from `data`."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    reader.train()
    for _ in range(steps):
        index = rng.integers(len(data[0]), size=32)
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(encode([data[0][i] for i in index]))
        truth = data[1][torch.from_numpy(index)]
        loss = sum(nn.functional.cross_entropy(one.float(), truth[:, i]) for i, one in enumerate(logits))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    reader.eval()


@torch.no_grad()
def score(reader: Reader, encode: Callable[[list[str]], TextStates], data: Labelled) -> dict[str, float]:
    """Share of prompts whose attribute is read right, per attribute and for all together."""
    logits = reader(encode(data[0]))
    right = torch.stack([one.argmax(1) for one in logits], 1) == data[1]  # (B, attributes)
    result = {name: float(right[:, i].float().mean()) for i, name in enumerate(CLASSES)}
    return {**result, "all": float(right.all(1).float().mean())}


def run(name: str, encoder: TextEncoder, train_data: Labelled, steps: int, seed: int) -> dict[str, object]:
    """Train a reader on one encoder and report its scores and its time for a prompt."""
    started = time.process_time()
    torch.manual_seed(seed)
    trained = isinstance(encoder, nn.Module)
    reader = Reader(encoder if isinstance(encoder, nn.Module) else None, encoder.width)
    cache: dict[str, Tensor] = {}

    def encode(prompts: list[str]) -> TextStates:
        if trained:
            return encoder.encode(prompts)
        new = [p for p in dict.fromkeys(prompts) if p not in cache]
        for start in range(0, len(new), 128):
            chunk = new[start : start + 128]
            states, cu_seqlens, _ = encoder.encode(chunk)
            cache.update(zip(chunk, states.tensor_split(cu_seqlens[1:-1]), strict=True))
        rows = [cache[p] for p in prompts]
        return TextStates(torch.cat(rows), torch.tensor([0] + [len(row) for row in rows]).cumsum(0))

    train(reader, encode, train_data, steps, seed)
    rng = np.random.default_rng(10_000 + seed)
    result: dict[str, object] = {"encoder": name}
    prompts, truth = freeform()
    reads = WordTransformer(WordConfig(tuple(vocabulary()), readings=synonyms(vocabulary()))).read
    scored = {
        "held-out": draw(rng, 500, "heldout"),
        "free-form": (prompts, truth),
        "read": ([" ".join(reads(prompt)) for prompt in prompts], truth),
    }
    for split, data in scored.items():
        result[split] = score(reader, encode, data)
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--captions", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=["words", "minilm"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = draw(np.random.default_rng(options.seed), options.captions, "train")
    minilm = MiniLM()
    results = []
    for name in options.only:
        torch.manual_seed(options.seed)
        encoder: TextEncoder = minilm
        if name == "words":
            encoder = WordTransformer(WordConfig(tuple(vocabulary())))
        results.append(run(name, encoder, data, options.steps, options.seed))
        for split in ("held-out", "free-form", "read"):
            shares = results[-1][split]
            assert isinstance(shares, dict)
            line = "  ".join(f"{key} {value:.2f}" for key, value in shares.items())
            print(f"{name:8s} {split:10s} {line}", flush=True)
        print(f"{name:8s} {results[-1]['cpu_seconds']} CPU-seconds")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
