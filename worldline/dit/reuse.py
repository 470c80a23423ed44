"""Steps that borrow from the one before what most blocks added, while the first block says that little has changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Reuse:
    """What the blocks after the first added to the tokens when they last ran, for one model and one sampler's run.

    An approximation. The first block always runs; where what it adds differs by less than `limit` from what it added
    then, the others are taken to add the same as well. TeaCache (Liu et al. 2024, arXiv 2411.19108) shows that the
    change of a cheap early quantity tells the change of the answer; the first block's share is one that needs no
    fitting to a model. All samples of a sequence decide together.

    Attributes:
        asked, reused: answers that were given, and those of them that were borrowed.
        errors: of the answer that would have been borrowed, relative to the true one, at every step that ran all
            blocks. Those are the steps of the larger changes, so that borrowed answers err less than the mean.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.asked = self.reused = 0
        self.errors: list[float] = []
        self._first: Tensor | None = None  # what the first block added when all blocks last ran
        self._others: Tensor | None = None  # what the others did

    def __call__(
        self, entered: Tensor, left: Tensor, others: Callable[[Tensor], Tensor], answer: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The answer of a step.

        Args:
            entered, left: tokens (N, width) before and after the first block.
            others: the blocks after it.
            answer: what the model says of the tokens that left the last block.
        """
        self.asked += 1
        first = left - entered
        if self._first is None or self._others is None or self._first.shape != first.shape:
            guess = None
        else:
            guess = answer(left + self._others)
            if _change(first, self._first) < self.limit:
                self.reused += 1
                return guess
        x = others(left)
        made = answer(x)
        if guess is not None:
            self.errors.append(_change(guess, made))
        self._first, self._others = first, x - left
        return made


def _change(value: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference relative to that of the reference."""
    norms = torch.linalg.vector_norm(torch.stack([value - reference, reference]).flatten(1).float(), dim=1)
    return float(norms[0] / norms[1].clamp_min(1e-12))
