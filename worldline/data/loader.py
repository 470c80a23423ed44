"""Samples by number, from shards or from raw clips, and the batches that a packer makes of them.

Batch k is a pure function of (index, seed, k): a resumed run asks for k and gets what it would have got.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from worldline.data.fit import Fit, FitPlan, fit, rate, shaped, stretched
from worldline.data.packing import Cost, Packer
from worldline.errors import UserError
from worldline.media.clips import read_clips
from worldline.records import Example
from worldline.shapes import OURS, Grid


class Source(Protocol):
    """Samples by number: `data.shards.Shards`, or `RawClips`."""

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, of every sample."""
        ...

    @property
    def sources(self) -> list[str]:
        """The file that every sample comes from."""
        ...

    def captions(self, number: int) -> list[str]:
        """All that was said of a sample."""
        ...

    def latents(self, number: int) -> np.ndarray:
        """float16 (C, T', H', W') before whitening."""
        ...

    def states(self, number: int, caption: int) -> np.ndarray | None:
        """Text states (m, D) of one caption, None where they are not stored."""
        ...


class RawClips:
    """Samples that are decoded and encoded when they are asked for: the same numbers, order and values as shards of the
    same clips, and no disk; slower by the cost of decoding and of the VAE."""

    def __init__(
        self,
        examples: Sequence[Example],
        plan: FitPlan,
        encode: Callable[[np.ndarray], np.ndarray],
        grid: Grid = OURS,
    ) -> None:
        """`encode` maps frames uint8 (T, H, W, 3) to float16 (C, T', H', W')."""
        whole = {example.clip.id: example for example in stretched(examples, plan)}
        fits = [(whole[name], fit(whole[name].clip, plan, grid, len(whole[name].captions))) for name in sorted(whole)]
        self.kept: list[tuple[Example, Fit]] = [(example, landed) for example, landed in fits if not landed.reason]
        if not self.kept:
            reason = fits[0][1].reason if fits else "no clips"
            raise UserError(f"data: none of {len(fits)} clips can be learned ({reason}); see `worldline doctor`")
        self.encode = encode

    @property
    def tokens(self) -> np.ndarray:
        return np.array([landed.tokens for _, landed in self.kept], np.int64)

    @property
    def sources(self) -> list[str]:
        return [example.clip.source for example, _ in self.kept]

    def captions(self, number: int) -> list[str]:
        return [caption.text for caption in self.kept[number][0].captions]

    def latents(self, number: int) -> np.ndarray:
        example, landed = self.kept[number]
        ((_, frames),) = read_clips([example.clip], rate=lambda clip: rate(landed))
        if isinstance(frames, UserError):
            raise frames
        return self.encode(shaped(frames, landed))

    def states(self, number: int, caption: int) -> np.ndarray | None:
        return None


@dataclass(frozen=True)
class Drawn:
    """One sample of a batch; `caption` is the number of the one that was drawn, -1 where it has none."""

    number: int
    latents: np.ndarray  # float16 (C, T', H', W')
    caption: int
    text: str
    states: np.ndarray | None


class Loader:
    """Steps of a source, `packs` of `budget` tokens each; only the samples in `numbers`, where given."""

    def __init__(
        self,
        source: Source,
        budget: int,
        seed: int,
        packs: int = 1,
        cost: Cost | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.source, self.seed = source, seed
        self.numbers = list(range(len(source.tokens))) if numbers is None else list(numbers)
        self.packer = Packer(source.tokens[self.numbers], budget, seed, packs, cost)

    def batch(self, step: int, pack: int = 0) -> list[Drawn]:
        """The samples of a pack of a step, each with one of its captions drawn."""
        numbers = [self.numbers[i] for i in self.packer.batch(step, pack)]
        return [self._drawn(number, step) for number in numbers]

    def _drawn(self, number: int, step: int) -> Drawn:
        said = self.source.captions(number)
        chosen = int(np.random.default_rng([self.seed, step, number]).integers(len(said))) if said else -1
        text = said[chosen] if said else ""
        states = self.source.states(number, chosen) if said else None
        return Drawn(number, self.source.latents(number), chosen, text, states)
