"""Packs samples of any length into sequences of a token budget, so that every rank of every step does equal work.

A pack of samples of N_i tokens costs sum(a N_i + b N_i^2): the linear layers and, inside each sample, attention. So
packs of equal tokens are not packs of equal work. Packs are filled to the budget, which bounds memory, and the packs of
one step are those whose costs lie next to each other, so that no rank waits for another. Step k is a pure function of
(token counts, seed, k): no state to save, no dependence on workers.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from worldline.errors import UserError

WINDOW = 4096  # samples that are packed together: enough to balance, few enough to stay shuffled


@dataclass(frozen=True)
class Cost:
    """Of a sample of N tokens: a N + b N^2, in any unit."""

    a: float = 1.0
    b: float = 0.0

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """float64, of counts of any shape."""
        n = tokens.astype(np.float64)
        cost: np.ndarray = self.a * n + self.b * n * n
        return cost


def balanced(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Numbers of the items of each of `parts`, of nearly equal cost: the dearest first, each to the cheapest part
    (longest processing time first, Graham 1969). Items keep their order inside a part."""
    loads, chosen = [0.0] * parts, [[] for _ in range(parts)]  # type: tuple[list[float], list[list[int]]]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        part = min(range(parts), key=lambda k: (loads[k], k))
        loads[part] += costs[item]
        chosen[part].append(item)
    return [sorted(part) for part in chosen]


class Packer:
    """Which samples step k holds, for every rank.

    Args:
        tokens: (S,) of every sample, its text included where the budget counts it.
        budget: most tokens of a pack.
        seed: of the order.
        ranks: packs of a step.
        cost: what is balanced.
    """

    def __init__(
        self, tokens: Sequence[int] | np.ndarray, budget: int, seed: int, ranks: int = 1, cost: Cost | None = None
    ) -> None:
        self.tokens = np.asarray(tokens, np.int64)
        self.budget, self.seed, self.ranks, self.cost = budget, seed, ranks, cost or Cost()
        if not len(self.tokens) or ranks < 1:
            raise UserError("packing: no samples, or no ranks")
        if int(self.tokens.max()) > budget:
            raise UserError(f"tokens: a sample has {self.tokens.max()}, more than the {budget} of a pack")
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int, rank: int = 0) -> list[int]:
        """Numbers of the samples of one rank in one step."""
        epoch = 0
        while step >= len(steps := self._epoch(epoch)):
            step -= len(steps)
            epoch += 1
        return steps[step][rank]

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """All steps of an epoch: packs of each rank."""
        return self._epoch(epoch)

    def _make_epoch(self, epoch: int) -> list[list[list[int]]]:
        rng = np.random.default_rng(_seed(self.seed, epoch))
        order = rng.permutation(len(self.tokens))
        steps: list[list[list[int]]] = []
        left = np.zeros(0, np.int64)
        for start in range(0, len(order), WINDOW):
            window = np.concatenate([left, order[start : start + WINDOW]])
            last = start + WINDOW >= len(order)
            packs, left = self._packs(window, last)
            packs.sort(key=self._load)  # neighbours are alike: they become one step
            grouped = [packs[i : i + self.ranks] for i in range(0, len(packs), self.ranks)]
            steps += [grouped[i] for i in rng.permutation(len(grouped))]
        return steps

    def _packs(self, window: np.ndarray, last: bool) -> tuple[list[list[int]], np.ndarray]:
        """Packs of a window, a multiple of the ranks, and what waits for the next; the last window leaves nothing."""
        packs = self._filled(window)
        if not last:
            packs.sort(key=lambda pack: -int(self.tokens[pack].sum()))
            kept = (len(packs) - 1) // self.ranks * self.ranks  # the emptiest of all are taken apart again
            left = [i for pack in packs[kept:] for i in pack]
            return packs[:kept], np.array(left, np.int64)
        while len(packs) % self.ranks:
            most = max(packs, key=lambda pack: (len(pack) > 1, self._load(pack)))
            if len(most) > 1:
                packs.remove(most)
                packs += [most[::2], most[1::2]]
            else:  # fewer samples than ranks: some come again, so that every rank has work
                packs.append(most)
        return packs, window[:0]

    def _filled(self, window: np.ndarray) -> list[list[int]]:
        """Largest first, each into the fullest pack that has room (best fit decreasing, Johnson 1973)."""
        tokens = self.tokens[window]
        packs: list[list[int]] = []
        rooms: list[tuple[int, int]] = []  # room, pack; sorted
        for i in np.lexsort((window, -tokens)).tolist():
            size = int(tokens[i])
            at = bisect.bisect_left(rooms, (size, -1))
            if at == len(rooms):
                packs.append([])
                room, number = self.budget, len(packs) - 1
            else:
                room, number = rooms.pop(at)
            packs[number].append(int(window[i]))
            bisect.insort(rooms, (room - size, number))
        return packs

    def _load(self, pack: list[int]) -> float:
        return float(self.cost.of(self.tokens[pack]).sum())

    def report(self, epoch: int = 0) -> dict[str, float]:
        """How well an epoch is packed: `filled` is the share of the budget that holds tokens, `imbalance` by how much
        the dearest rank of a step is dearer than its mean, `spread` the deviation of all costs over their mean."""
        steps = self._epoch(epoch)
        loads = np.array([[self._load(pack) for pack in step] for step in steps if len(step) == self.ranks])
        held = sum(int(self.tokens[pack].sum()) for step in steps for pack in step)
        packs = sum(len(step) for step in steps)
        uneven = float((loads.max(1) / loads.mean(1) - 1).mean()) if len(loads) else 0.0
        spread = float(loads.std() / loads.mean()) if len(loads) else 0.0
        return {"steps": len(steps), "filled": held / (packs * self.budget), "imbalance": uneven, "spread": spread}


def _seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{epoch}/packing".encode()).digest()
    return int.from_bytes(digest[:8], "little")
