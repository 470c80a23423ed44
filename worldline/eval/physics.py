"""Gravity and bounce as a video shows them: parabolas fitted to the paths of what flies."""

from __future__ import annotations

import numpy as np

from worldline.worlds.tracks import Track, find_tracks, working_size
from worldline.worlds.verify_nets import shipped_table

SHORTEST = 5  # frames of a flight
RESIDUAL = 0.02  # half shorter sides: how well a flight is a parabola
RISE = 0.15  # half shorter sides that a flight covers at least: below, a thing may as well stand


def gravity(frames: np.ndarray, fps: float) -> float | None:
    """Downward acceleration of the largest thing in flight, in units of its own apparent size per s^2.

    The size (the root of its area) stands for its unknown distance, so that a clip can be held against another one of
    the same thing. None where nothing flies. uint8 (T, H, W, 3).
    """
    track = _largest(frames)
    if track is None:
        return None
    best: tuple[int, float] | None = None
    heights = track.centre[:, 1]
    for first in range(len(heights) - SHORTEST + 1):
        for stop in range(first + SHORTEST, len(heights) + 1):
            curve = _flight(heights[first:stop])
            if curve is not None and (best is None or stop - first > best[0]):
                best = stop - first, curve
    if best is None:
        return None
    size = float(np.sqrt(np.median(track.area[track.visible]))) / 32
    return -2 * best[1] * fps**2 / size


def restitution(frames: np.ndarray) -> float | None:
    """Speed after the first contact with the floor over the speed before it, from the heights of fall and rebound:
    sqrt(h1 / h0). None where nothing falls and comes up again."""
    track = _largest(frames)
    if track is None:
        return None
    seen = track.centre[np.isfinite(track.centre[:, 1]), 1]
    contact = _first_contact(seen)
    if contact is None or contact + 2 >= len(seen):
        return None
    fall, rebound = seen[: contact + 1].max() - seen[contact], seen[contact:].max() - seen[contact]
    return float(np.sqrt(rebound / fall)) if fall > RISE else None


def size_drift(frames: np.ndarray, fps: float) -> float:
    """By what share of itself the largest thing grows a second in view, from the first to the last second of uint8
    (T, H, W, 3): log(side after / side before) / seconds. NaN where one of them shows nothing."""
    second = max(1, round(fps))
    ends = [_largest(part) for part in (frames[:second], frames[-second:])]
    before, after = (float(np.median(t.area[t.visible])) if t is not None else np.nan for t in ends)
    return float(np.log(after / before) / 2 / max((len(frames) - second) / fps, 1 / fps))


def _largest(frames: np.ndarray) -> Track | None:
    _, tracks = find_tracks(working_size(frames), shipped_table())
    return max(tracks, key=lambda track: float(np.median(track.area)), default=None)


def _flight(heights: np.ndarray) -> float | None:
    """The quadratic coefficient of a stretch of heights (n,) per frame that is a falling parabola, else None."""
    if not np.isfinite(heights).all() or np.ptp(heights) < RISE:
        return None
    times = np.arange(len(heights))
    fit = np.polyfit(times, heights, 2)
    residual = float(np.sqrt(np.mean((np.polyval(fit, times) - heights) ** 2)))
    return float(fit[0]) if residual < RESIDUAL and fit[0] < 0 else None


def _first_contact(heights: np.ndarray) -> int | None:
    """The first lowest point after which a thing comes up again by a tenth of its fall."""
    lowest = 0
    for t in range(1, len(heights)):
        if heights[t] < heights[lowest]:
            lowest = t
        elif heights[t] - heights[lowest] > 0.1 * (heights[0] - heights[lowest]) > 0:
            return lowest
    return None
