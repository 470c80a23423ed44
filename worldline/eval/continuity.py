"""Do joins show? Distances between neighbouring frames, across joins and around a loop, and the drift of colour."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

from worldline.errors import UserError

LEAST = 0.5  # levels of 8 bits: a step that nobody sees, under the median of a clip in which nothing moves


def distances(frames: np.ndarray) -> np.ndarray:
    """Root mean square difference of each frame to the next, in 8-bit levels: uint8 (T, H, W, 3) -> (T - 1,)."""
    return np.array([_distance(a, b) for a, b in pairwise(frames)])


def join_ratio(frames: np.ndarray, joins: Sequence[int]) -> float:
    """The largest distance across a join over the median distance of the other neighbours.

    A join j lies between the frames j - 1 and j; 1 means that it moves as the rest does. Raises UserError for a join
    outside the clip, or when nothing is left to compare with.
    """
    steps = distances(frames)
    inside = [join for join in joins if 1 <= join <= len(steps)]
    if len(inside) != len(joins) or not joins or len(set(joins)) >= len(steps):
        raise UserError(f"joins {list(joins)} do not lie within a clip of {len(frames)} frames")
    across = np.zeros(len(steps), bool)
    across[[join - 1 for join in joins]] = True
    return float(steps[across].max() / max(np.median(steps[~across]), LEAST))


def loop_ratio(frames: np.ndarray) -> float:
    """The distance from the last frame back to the first over the median distance of neighbours."""
    if len(frames) < 3:
        raise UserError(f"a loop of {len(frames)} frames has no neighbours to compare with; give 3 or more")
    return _distance(frames[-1], frames[0]) / max(float(np.median(distances(frames))), LEAST)


def colour_drift(frames: np.ndarray, joins: Sequence[int] = ()) -> float:
    """How far the picture's colour wanders, in 8-bit levels: the largest difference, over the stretches that `joins`
    cut, of their mean pictures in one channel. The median of all pixels counts, since what moves covers less than
    half of them."""
    stretches = np.split(frames, sorted(joins)) if len(joins) else np.array_split(frames, min(4, len(frames)))
    means = [part.mean(0, dtype=np.float32) for part in stretches if len(part)]  # (H, W, 3)
    shifts = [np.abs(np.median(a - b, axis=(0, 1))).max() for a, b in combinations(means, 2)]
    return float(max(shifts, default=0.0))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b) ** 2)))
