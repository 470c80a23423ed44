"""Letterbox and pillarbox bars: flat dark borders that a picture keeps for the whole of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from worldline.curate.stage import Judgement, Look, Stage

Extremes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Bars(Stage):
    """Finds the picture within its bars. Bars of one pair have the same width, so the narrower one counts."""

    name: ClassVar[str] = "bars"
    close: ClassVar[bool] = True

    darkest: int = 40  # levels: no sample of a bar is brighter
    spread: int = 12  # levels between its darkest and its brightest sample
    least_left: float = 0.25  # of the area; what leaves less of a picture is dropped

    def see(self, look: Look) -> Extremes:
        """Largest and smallest luma of every row, then of every column."""
        luma = look.luma()
        return luma.max(1), luma.min(1), luma.max(0), luma.min(0)

    def judge(self, notes: Sequence[Extremes], size: tuple[int, int]) -> Judgement:
        width, height = size
        high, low, right, left = (np.stack(part) for part in zip(*notes, strict=True))
        top = self._width(high.max(0), low.min(0)) * height / high.shape[1]
        side = self._width(right.max(0), left.min(0)) * width / right.shape[1]
        top, side = round(top), round(side)
        if not top and not side:
            return Judgement({"picture": 1.0})
        crop = (side, top, width - 2 * side, height - 2 * top)
        share = crop[2] * crop[3] / (width * height)
        if share < self.least_left:
            return Judgement({"picture": share}, reason=f"bars leave {share:.0%} of the picture")
        return Judgement({"picture": share}, remark=f"bars cut off, {crop[2]}x{crop[3]} left", crop=crop)

    def _width(self, high: np.ndarray, low: np.ndarray) -> int:
        """Lines of the narrower of two bars at the ends of an axis; 0 for a picture that is dark all over."""
        dark = (high <= self.darkest) & (high.astype(int) - low <= self.spread)
        if dark.all():
            return 0
        return int(min(np.argmin(dark), np.argmin(dark[::-1])))
