"""Shots of a film: cuts by PySceneDetect's adaptive detector, dissolves and fades by how frames blend.

Between the last picture a of one shot and the first picture b of the next, a dissolve shows (1 - t) a + t b with t
rising evenly; a fade is the same with black or white in place of one of them. So the energy E of its edges, the mean
square of a picture's gradient, lies on a parabola that hangs below the straight line from E(a) to E(b) by
t (1 - t) E(b - a), whatever moves in either shot, and however much of the picture both have in common. Motion, however
fast, leaves E near the line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from worldline.errors import UserError

Range = tuple[int, int, str]  # first frame, end frame, and "shot", "dissolve" or "fade"
SECONDS = 0.3 * 1.15 ** np.arange(16)  # that a dissolve may last, to 2.4; shorter ones are cuts
SHORTEST = 6  # frames
WITHIN = np.arange(1, 8) / 8  # where between its ends a dissolve is looked at
TINY = (16, 9)  # columns and rows of the pictures that are held against each other
GREY = (48, 27)  # of those whose edges count
CHUNK = 1024  # starts looked at together
NEXT = 2  # frames by which ends may be off: a cut beside a blend is part of it, and black beside it makes it a fade
FLAT_ENERGY = 2.0  # of edges, which is too little to measure

# A logistic regression on films that `benchmarks.shots` joins of its clips for tuning: dissolves against all other
# stretches, those that overlap a dissolve among them.
WEIGHTS = {"misfit": -4.0, "unrest": -0.27, "bend": -1.4, "share": 2.7}
BIAS = -14.5
LONGER = 1.4  # what twice the length counts for among stretches that overlap: a part of a dissolve is one, too


@dataclass(frozen=True)
class Shots:
    """Where a film is cut. The first two are AdaptiveDetector's `adaptive_threshold` and `min_content_val`."""

    ratio: float = 3.0  # change of a frame over that of its neighbours
    change: float = 10.0  # levels of hue, saturation and value
    dissolves: bool = True
    contrast: float = 10.0  # levels between the ends of a dissolve
    evidence: float = -0.5  # log odds that a stretch is one: more finds fewer

    def begin(self, rate: float) -> Finder:
        """A finder for one file of `rate` frames a second. Raises UserError without the extra `data`."""
        return Finder(self, rate)


class Finder:
    """Sees every frame of one file, then tells its ranges."""

    def __init__(self, plan: Shots, rate: float) -> None:
        try:
            detector = _detector()
        except ImportError:
            raise UserError("shots need the extra `data`; install it with `pip install 'worldline[data]'`") from None
        self.plan, self.rate = plan, rate
        self.detector = detector(plan.ratio, min_scene_len=0, min_content_val=plan.change)
        self.cuts: list[int] = []
        self.tiny: list[np.ndarray] = []
        self.grey: list[np.ndarray] = []
        self.frames = 0

    def see(self, picture: np.ndarray) -> None:
        """One frame uint8 (h, w, 3) BGR."""
        import cv2

        # Numbers serve as time codes, whose arithmetic would take longer than the score.
        self.cuts += self.detector.process_frame(self.frames, picture)
        if self.plan.dissolves:
            grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
            self.grey.append(cv2.resize(grey, GREY, interpolation=cv2.INTER_AREA))
            self.tiny.append(cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA).ravel())
        self.frames += 1

    def ranges(self) -> list[Range]:
        """The ranges of all frames, in order and without holes."""
        blends = self._blends()
        cuts = [cut for cut in self.cuts if not any(first - NEXT <= cut <= last + NEXT for first, last, _ in blends)]
        marks = sorted([(cut, cut, "") for cut in cuts] + [(first + 1, last, kind) for first, last, kind in blends])
        out: list[Range] = []
        start = 0
        for first, end, kind in [*marks, (self.frames, self.frames, "")]:
            if first > start:
                out.append((start, first, "shot"))
            if end > first:
                out.append((first, end, kind))
            start = end
        return out

    def _blends(self) -> list[Range]:
        """Dissolves and fades, from the last frame before to the first after; of those that overlap the likeliest."""
        if len(self.tiny) < 8:
            return []
        pictures, grey = np.stack(self.tiny), np.stack(self.grey)  # uint8 (frames, TINY), (frames, GREY)
        energy = np.concatenate([_energy(grey[i : i + CHUNK].astype(np.float32)) for i in range(0, len(grey), CHUNK)])
        likely: list[tuple[float, int, int]] = []
        for span in sorted({max(SHORTEST, round(seconds * self.rate)) for seconds in SECONDS}):
            for offset in range(0, len(pictures) - span, CHUNK):
                starts = np.arange(offset, min(offset + CHUNK, len(pictures) - span))
                rows, odds = _evidence(pictures, grey, energy, starts, span, self.plan.contrast)
                best = -odds - LONGER * np.log2(span)
                likely += [(float(best[i]), int(rows[i]), span) for i in np.flatnonzero(odds > self.plan.evidence)]
        found: list[tuple[int, int]] = []
        taken = np.zeros(len(pictures), bool)
        for _, start, span in sorted(likely):
            if not taken[start + 1 : start + span].any():
                taken[start + 1 : start + span] = True
                found.append((start, start + span))
        return _named(sorted(found), _flat(pictures))


@cache
def _detector() -> Any:
    """PySceneDetect's adaptive detector, whose scores OpenCV sums: the same numbers in a fifth of the time."""
    import cv2
    from scenedetect.detectors import AdaptiveDetector

    class Detector(AdaptiveDetector):  # type: ignore[misc,unused-ignore]
        before: np.ndarray | None = None

        def _calculate_frame_score(self, timecode: Any, frame_img: np.ndarray) -> float:
            """Mean change of hue, saturation and value."""
            after = cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV)
            before, self.before = self.before, after
            return 0.0 if before is None else cv2.norm(before, after, cv2.NORM_L1) / after.size

    return Detector


def _named(found: list[tuple[int, int]], flat: np.ndarray) -> list[Range]:
    """Those that begin or end black or white, or next to it, are fades; they take all of it, and what goes and comes
    is one."""
    out: list[Range] = []
    for start, end in found:
        early = max(start - NEXT, 0)
        before, after = np.flatnonzero(flat[early : start + 1]), np.flatnonzero(flat[end : end + NEXT + 1])
        kind = "fade" if len(before) or len(after) else "dissolve"
        if len(before):
            start = early + int(before[0])
        if len(after):
            end += int(after[-1])
        while start >= 0 and flat[start]:
            start -= 1
        while end < len(flat) and flat[end]:
            end += 1
        if out and "fade" in (kind, out[-1][2]) and out[-1][1] >= start:
            start, kind = min(start, out.pop()[0]), "fade"
        out.append((start, end, kind))
    return out


def _evidence(
    pictures: np.ndarray, grey: np.ndarray, energy: np.ndarray, starts: np.ndarray, span: int, contrast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Those starts from which a dissolve of `span` frames is possible at all, and their log odds, both (n,)."""
    shares = np.round(WITHIN * span).astype(int) / span
    first, last = energy[starts], energy[starts + span]
    sag = np.stack([(1 - t) * first + t * last - energy[starts + round(t * span)] for t in shares])  # (7, n)
    parabola = shares * (1 - shares)
    rows = np.flatnonzero(sag.sum(0) / parabola.sum() > np.maximum(FLAT_ENERGY, 0.02 * (first + last)))
    a, b = (pictures[starts[rows] + k].astype(np.float32) for k in (0, span))
    differ = _distance(a, b) > contrast
    rows, a, b = rows[differ], a[differ], b[differ]
    starts, sag, total = starts[rows], sag[:, rows], (first + last)[rows]
    apart = 1 + _energy(grey[starts + span].astype(np.float32) - grey[starts])
    bend = np.zeros(len(starts))
    line = b - a
    length = np.einsum("nm,nm->n", line, line)
    for t in shares:
        along = np.einsum("nm,nm->n", pictures[starts + round(t * span)] - a, line) / length
        bend = np.maximum(bend, np.abs(along - t))
    # What moves smoothly changes before and after as well.
    aside = max(2, span // 4)
    before, after = np.maximum(starts - aside, 0), np.minimum(starts + span + aside, len(pictures) - 1)
    pace = _distance(a, b) * aside / span
    features = {
        "misfit": np.log(np.sqrt(((sag / apart - parabola[:, None]) ** 2).mean(0)) + 0.01),
        "unrest": sum(
            np.log(_distance(end, pictures[aside]) / pace + 0.05) for end, aside in ((a, before), (b, after))
        ),
        "bend": np.log(bend + 0.02),
        "share": np.log(apart / (total + 1)),
    }
    return starts, BIAS + sum(WEIGHTS[name] * value for name, value in features.items())


def _energy(grey: np.ndarray) -> np.ndarray:
    """(n,) mean square of the differences of neighbours, of (n, h, w)."""
    return _mean_square(np.diff(grey, axis=1)) + _mean_square(np.diff(grey, axis=2))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean_square(a - b.astype(np.float32)))


def _mean_square(x: np.ndarray) -> np.ndarray:
    """(n,) of float32 (n, ...)."""
    rows = x.reshape(len(x), math.prod(x.shape[1:]))
    return np.einsum("nm,nm->n", rows, rows) / rows.shape[1]


def _flat(pictures: np.ndarray) -> np.ndarray:
    """(n,) whether a picture is black or white all over."""
    mean = pictures.mean(1)
    return (pictures.std(1) < 3) & ((mean < 24) | (mean > 235))


@dataclass(frozen=True)
class Trim:
    """How long clips are, in seconds: what is longer is cut into equal parts, what is shorter is dropped."""

    least: float = 1.0
    most: float = 20.0

    def parts(self, first: int, end: int, times: np.ndarray) -> list[tuple[int, int]]:
        """Ranges of frames that make up (first, end); `times` (frames + 1,) are seconds, the last one the end."""
        count = int(np.ceil((times[end] - times[first]) / self.most - 1e-9)) if self.most else 1
        if count <= 1 or end - first < count:
            return [(first, end)]
        inner = np.linspace(times[first], times[end], count + 1)[1:-1]
        marks = [first, *(first + int(i) for i in np.searchsorted(times[first:end], inner - 1e-9)), end]
        return [(a, b) for a, b in pairwise(marks) if b > a]
