"""A dry run of a dataset through a recipe: where each clip lands or why not, packs, cost, captions, leaks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldline.curate.duplicates import Duplicates, prints_of
from worldline.data.fit import Fit, fit, stretched
from worldline.data.packing import Packer
from worldline.records import Clip, Example
from worldline.shapes import Grid
from worldline.train.dit import build
from worldline.train.dit_plan import DiTPlan, cost_of
from worldline.train.flow import Sample, assemble, flow_loss
from worldline.train.plan import torch_rng
from worldline.train.shards import merged
from worldline.train.vae import DTYPES
from worldline.worlds.captions import vocabulary
from worldline.worlds.synonyms import synonyms

STATE_BYTES = 22  # of a parameter in training: bf16 weight, fp32 master, gradient, two moments and average
NEAR = 16  # bits of 64 in which fingerprints of copies may differ; those of two real films differ in about half
LIKELY = 8  # clips of the test set that are looked at for one clip


@dataclass(frozen=True)
class Landing:
    """One clip, or a stretch of a long one."""

    example: Example
    fit: Fit

    @property
    def kept(self) -> bool:
        return not self.fit.reason


@dataclass(frozen=True)
class Leak:
    """A clip that lies in the test set as well, and how that shows."""

    clip: Clip
    test: Clip
    how: str


@dataclass(frozen=True)
class Examined:
    """What the doctor found. `broken`: (source, reason) of files that could not be opened; `step` is empty where
    nothing is learned."""

    landings: list[Landing]
    broken: list[tuple[str, str]]
    repeated: int  # clips that were given more than once
    packing: dict[str, float]
    padding: dict[str, float]  # share of work that padding would be
    step: dict[str, float]
    captions: dict[str, Any]
    leaks: list[Leak]

    @property
    def kept(self) -> list[Landing]:
        return [landing for landing in self.landings if landing.kept]

    @property
    def kept_share(self) -> float:
        return len(self.kept) / max(1, len(self.landings) + len(self.broken))

    @property
    def reasons(self) -> Counter[str]:
        """Why clips are not learned, without the figures that differ from clip to clip."""
        said = [landing.fit.reason for landing in self.landings if not landing.kept]
        return Counter([reason.split(":")[0] for reason in said] + ["unreadable file"] * len(self.broken))

    @property
    def buckets(self) -> Counter[str]:
        """Clips of each shape."""
        return Counter(landing.fit.name for landing in self.kept)

    def as_dict(self) -> dict[str, Any]:
        """JSON types: the summary, and a row for every clip."""
        rows = [
            {
                "source": x.example.clip.source,
                "start": x.example.clip.start,
                "end": x.example.clip.end,
                "lands": x.fit.name if x.kept else None,
                "tokens": x.fit.tokens,
                "reason": x.fit.reason,
                "captions": len(x.example.captions),
            }
            for x in self.landings
        ]
        rows += [{"source": source, "lands": None, "tokens": 0, "reason": reason} for source, reason in self.broken]
        return {
            "clips": len(rows),
            "kept": len(self.kept),
            "kept_share": self.kept_share,
            "repeated": self.repeated,
            "reasons": dict(self.reasons),
            "buckets": dict(self.buckets),
            "packing": self.packing,
            "padding": self.padding,
            "step": self.step,
            "captions": self.captions,
            "leaks": [{"source": x.clip.source, "test": x.test.source, "how": x.how} for x in self.leaks],
            "rows": rows,
        }

    def table(self) -> str:
        """The summary for people."""
        total = len(self.landings) + len(self.broken)
        lines = [f"{len(self.kept)} of {total} clips are learned ({self.kept_share:.0%}), {self.repeated} given twice"]
        lines += [f"  not learned: {count:5}  {reason}" for reason, count in self.reasons.most_common()]
        lines += [f"  {name:>14}  {count:5} clips" for name, count in sorted(self.buckets.items())]
        if self.step:
            p, s = self.packing, self.step
            lines.append(
                f"packs of {s['budget']:.0f} tokens: {p['steps']:.0f} steps an epoch, {p['filled']:.1%} filled"
            )
            lines.append("padding would be " + ", ".join(f"{v:.1%} ({k})" for k, v in self.padding.items()))
            memory = f"{s['state_bytes'] / 1e9:.2f} GB of weights and optimizer, {s['activation_bytes'] / 1e9:.2f} GB"
            lines.append(f"a step takes {s['seconds']:.2f} s here and {memory} of activations")
        c = self.captions
        if c.get("captions"):
            words = f"{c['words_min']} to {c['words_max']} words, median {c['words_median']:.0f}"
            lines.append(f"{c['captions']} captions of {words}; {c['repeated']} say what another says")
            lines.append(f"{c['unknown_share']:.1%} of their words are not known to the recipe's text encoder")
        lines += [f"LEAK  {x.clip.source} is in the test set ({x.how}: {x.test.source})" for x in self.leaks[:20]]
        return "\n".join(lines)


def examine(
    examples: Sequence[Example],
    plan: DiTPlan,
    broken: Sequence[tuple[str, str]] = (),
    tests: Sequence[Example] = (),
    ranks: int = 1,
) -> Examined:
    """Looks at every clip; decodes only what may be a leak and trains nothing but two steps on noise, to time them."""
    grid = Grid(patch=plan.config.patch)
    whole = merged(stretched(examples, plan.fit))
    repeated = len({id(e) for e in examples}) - len({e.clip.id for e in examples})
    landings = [Landing(example, fit(example.clip, plan.fit, grid, len(example.captions))) for example in whole]
    kept = [landing for landing in landings if landing.kept]
    packing, padding, step = _work(kept, plan, ranks) if kept else ({}, {}, {})
    said = captions_of([landing.example for landing in landings], plan)
    return Examined(landings, list(broken), repeated, packing, padding, step, said, leaks(examples, tests))


def _work(
    kept: list[Landing], plan: DiTPlan, ranks: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    tokens = np.array([landing.fit.tokens for landing in kept])
    budget = max(plan.batch * int(np.median(tokens)), int(tokens.max()))
    packer = Packer(tokens, budget, plan.seed, ranks, cost_of(plan))
    packing = packer.report()
    padding = {"packs": 0.0, "every clip padded to the longest": 1 - tokens.sum() / (len(tokens) * tokens.max())}
    padding["packs padded to the budget"] = 1 - packing["filled"]
    step = {"budget": float(budget)} | measured([kept[i].fit for i in packer.batch(0)], plan)
    return packing, {name: float(value) for name, value in padding.items()}, step


def measured(fits: Sequence[Fit], plan: DiTPlan) -> dict[str, float]:
    """Seconds and bytes of one step on noise of these shapes: the second of two, as the first one warms up."""
    device, dtype = torch.device(plan.device), DTYPES[plan.dtype]
    model = build(plan).to(device, dtype)
    grid = Grid(patch=plan.config.patch)
    shapes = sorted((s.frames, s.height, s.width) for s in (grid.latent(landed.video) for landed in fits))
    noise = torch_rng(0, 0, "doctor")
    samples = [Sample(torch.randn(plan.config.in_channels, *s), torch.zeros(1, *s), range(s[0])) for s in shapes]
    prompts = ["a red ball rolls to the right on a grey floor under a pale sky"] * len(samples)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = 0.0
    for _ in range(2):
        batch = assemble(plan, samples, torch.full((len(samples),), 0.5), prompts, noise)
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = flow_loss(model, batch, device)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = sum(size for pointer, size in kept.items() if pointer not in weights)
    return {
        "seconds": seconds,
        "parameters": float(count),
        "state_bytes": float(STATE_BYTES * count),
        "activation_bytes": held / 2,
    }


def captions_of(examples: Sequence[Example], plan: DiTPlan) -> dict[str, Any]:
    """Counts of captions and words, and which words the recipe's own encoder does not know."""
    texts = [caption.text for example in examples for caption in example.captions]
    counts = [len(text.split()) for text in texts]
    words = Counter(word.strip(".,;:!?\"'()").lower() for text in texts for word in text.split())
    known = set(vocabulary())
    known |= set(synonyms(sorted(known)))
    unknown = Counter({w: n for w, n in words.items() if w not in known}) if plan.encoder == "words" else Counter()
    return {
        "captions": len(texts),
        "without": sum(1 for example in examples if not example.captions),
        "repeated": len(texts) - len(set(texts)),
        "words_min": min(counts, default=0),
        "words_median": float(np.median(counts)) if counts else 0.0,
        "words_max": max(counts, default=0),
        "counts": counts,
        "unknown_share": sum(unknown.values()) / max(1, sum(words.values())),
        "unknown": [word for word, _ in unknown.most_common(20)],
        "common": words.most_common(20),
    }


def leaks(examples: Sequence[Example], tests: Sequence[Example]) -> list[Leak]:
    """Clips of the test set that are trained on: the same bytes, or a copy by the rule that `worldline curate` has.

    Fingerprints name the likeliest test clips; whether one is a copy is seen in pictures of both files.
    """
    bytes_of = {example.clip.source_sha256: example.clip for example in tests}
    marks = [(int(e.clip.fingerprint, 16), e.clip) for e in tests if e.clip.fingerprint]
    likely: dict[str, list[Clip]] = {}
    for clip in (example.clip for example in examples):
        if clip.source_sha256 not in bytes_of and clip.fingerprint and clip.id not in likely:
            mark = int(clip.fingerprint, 16)
            near = sorted(((mark ^ other).bit_count(), i) for i, (other, _) in enumerate(marks))
            likely[clip.id] = [marks[i][1] for bits, i in near[:LIKELY] if bits <= NEAR]
    asked = {example.clip.id: example.clip for example in examples if likely.get(example.clip.id)}
    asked |= {test.id: test for near in likely.values() for test in near}
    prints, rule = prints_of(asked.values()) if asked else {}, Duplicates()
    found = []
    for clip in (example.clip for example in examples):
        if clip.source_sha256 in bytes_of:
            found.append(Leak(clip, bytes_of[clip.source_sha256], "the same file"))
        elif clip.id in prints:
            seen = (test for test in likely[clip.id] if test.id in prints)
            copy = next((test for test in seen if rule.same(prints[clip.id], prints[test.id])), None)
            found += [Leak(clip, copy, "shows the same")] if copy else []
    return found
