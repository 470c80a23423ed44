"""Shots of a film: cuts by PySceneDetect's adaptive detector, dissolves and fades by how frames blend.

Between the last picture a of one shot and the first picture b of the next, a dissolve shows (1 - t) a + t b with t
rising evenly; a fade is the same with black in place of one of them. So the pictures of one lie near the straight line
from its first to its last, in even steps, and its edges lose energy as (1 - t)^2 and t^2, which they do not when
things or the camera move, however fast. Before it and after it little changes.
"""

from __future__ import annotations

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
CHUNK = 4096  # starts looked at together

UNEVEN = 0.12  # how far the strength of a fade may be from even steps
# What no dissolve is, whatever the rest says: edges that stay, a path that bends, a last picture that is the first one
# in another light. Then a logistic regression on films that `benchmarks.shots` joins of its clips for tuning.
LEAST_DIP, MOST_BEND, LEAST_NOVELTY = 0.3, 0.4, 0.25
WEIGHTS = {"dip": 1.75, "novelty": 2.06, "unrest": -0.23, "residue": -2.25, "bend": -2.96}
BIAS = -12.1


@dataclass(frozen=True)
class Shots:
    """Where a film is cut. The first two are AdaptiveDetector's `adaptive_threshold` and `min_content_val`."""

    ratio: float = 3.0  # change of a frame over that of its neighbours
    change: float = 10.0  # levels of hue, saturation and value
    dissolves: bool = True
    contrast: float = 10.0  # levels between the ends of a dissolve
    evidence: float = 0.0  # log odds that a stretch is one: more finds fewer

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
        self.edges: list[float] = []
        self.frames = 0

    def see(self, picture: np.ndarray) -> None:
        """One frame uint8 (h, w, 3) BGR."""
        import cv2

        # Numbers serve as time codes, whose arithmetic would take longer than the score.
        self.cuts += self.detector.process_frame(self.frames, picture)
        if self.plan.dissolves:
            self.edges.append(_edge_energy(picture))
            self.tiny.append(cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA).ravel())
        self.frames += 1

    def ranges(self) -> list[Range]:
        """The ranges of all frames, in order and without holes."""
        blends = self._blends()
        cuts = [cut for cut in self.cuts if not any(first <= cut <= last for first, last, _ in blends)]
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
        pictures, edges = np.stack(self.tiny), np.array(self.edges)  # uint8 (frames, TINY)
        likely: list[tuple[float, int, int]] = []
        for span in sorted({max(SHORTEST, round(seconds * self.rate)) for seconds in SECONDS}):
            for offset in range(0, len(pictures) - span, CHUNK):
                starts = np.arange(offset, min(offset + CHUNK, len(pictures) - span))
                odds = _evidence(pictures, edges, starts, span, self.plan)
                likely += [(-float(odds[i]), int(starts[i]), span) for i in np.flatnonzero(odds > self.plan.evidence)]
        found = _fades(_flat(pictures), np.sqrt(edges), round(SECONDS[-1] * self.rate))
        taken = np.zeros(len(pictures), bool)
        for first, last, _ in found:
            taken[first : last + 1] = True
        for _, start, span in sorted(likely):
            if not taken[start : start + span + 1].any():
                taken[start : start + span + 1] = True
                found.append((start, start + span, "dissolve"))
        return sorted(found)


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


def _fades(flat: np.ndarray, strength: np.ndarray, longest: int) -> list[Range]:
    """Black or white with what rises out of it or sinks into it: there the strength of edges, which grows with t
    whatever moves, lies on a straight line."""
    out: list[Range] = []
    marks = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    for first, end in marks.reshape(-1, 2).tolist():
        before, after = _ramp(strength[:first][::-1], longest), _ramp(strength[end:], longest)
        if before or after:
            start, stop = first - before - 1, end + after
            if out and out[-1][1] >= start:
                start = out.pop()[0]
            out.append((max(start, 0), min(stop, len(flat) - 1), "fade"))
    return out


def _ramp(strength: np.ndarray, longest: int) -> int:
    """How many values rise from nothing to the next one in even steps; 0 where none do."""
    for count in range(min(longest, len(strength) - 1), SHORTEST // 2, -1):
        share = (np.arange(count) + 1) / (count + 1)
        if np.abs(strength[:count] / (strength[count] + 1e-6) - share).max() < UNEVEN:
            return count
    return 0


def _evidence(pictures: np.ndarray, edges: np.ndarray, starts: np.ndarray, span: int, plan: Shots) -> np.ndarray:
    """(n,) log odds that a dissolve of `span` frames lies between each start and the frame `span` after it."""
    out = np.full(len(starts), -np.inf)
    dip = _dip(edges, starts, span)
    rows = np.flatnonzero(dip > LEAST_DIP)  # costs next to nothing, and leaves little
    starts = starts[rows]
    a, b = pictures[starts].astype(np.float32), pictures[starts + span].astype(np.float32)
    line = b - a
    length = np.sqrt((line**2).mean(1)) + 1e-6
    bend, residue = np.zeros(len(rows)), np.zeros(len(rows))
    for share in WITHIN:
        k = round(share * span)
        off = pictures[starts + k].astype(np.float32) - a
        t = (off * line).mean(1) / length**2
        bend = np.maximum(bend, np.abs(t - k / span))
        residue = np.maximum(residue, np.sqrt(((off - t[:, None] * line) ** 2).mean(1)) / length)
    # Anything that moves smoothly runs straight for a short time; but it also moves before and after.
    aside = max(2, span // 4)
    before, after = np.maximum(starts - aside, 0), np.minimum(starts + span + aside, len(pictures) - 1)
    pace = length * aside / span
    unrest = [_distance(end, pictures[aside]) / pace for end, aside in ((a, before), (b, after))]
    features = {
        "dip": dip[rows],
        "novelty": _unexplained(a, b),
        "unrest": sum(np.log(value + 0.05) for value in unrest),
        "residue": np.log(residue + 0.02),
        "bend": np.log(bend + 0.02),
    }
    odds = BIAS + sum(WEIGHTS[name] * value for name, value in features.items())
    apart = (length > plan.contrast) & (bend < MOST_BEND) & (features["novelty"] > LEAST_NOVELTY)
    out[rows] = np.where(apart, odds, -np.inf)
    return out


def _edge_energy(picture: np.ndarray) -> float:
    """Mean square of the differences of neighbours, of a picture uint8 (h, w, 3) BGR made grey and a little smooth."""
    import cv2

    grey = cv2.sepFilter2D(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.CV_16S, _SMOOTH, _SMOOTH)  # sixteen times
    down, across = cv2.absdiff(grey[1:], grey[:-1]), cv2.absdiff(grey[:, 1:], grey[:, :-1])
    return sum(cv2.norm(slope, cv2.NORM_L2SQR) / max(slope.size, 1) for slope in (down, across)) / 256


_SMOOTH = np.array([1, 2, 1], np.float32)


def _dip(edges: np.ndarray, starts: np.ndarray, span: int) -> np.ndarray:
    """(n,) 1 where the energy of edges falls and rises as in a dissolve between pictures that have no edge in common,
    0 where it goes straight from its first to its last value, however much moves.

    Within a dissolve it is (1 - t)^2 of the one and t^2 of the other, and both dissolve at once.
    """
    first, last = edges[starts], edges[starts + span]
    lost, most = np.zeros(len(starts)), np.full(len(starts), 1.0)  # the one keeps flat pictures from saying anything
    for share in WITHIN:
        k = round(share * span)
        t = k / span
        straight = (1 - t) * first + t * last
        lost += straight - edges[starts + k]
        most += straight - (1 - t) ** 2 * first - t**2 * last
    return np.clip(lost / most, -1, 1.5)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b.astype(np.float32)) ** 2).mean(1))


def _unexplained(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) the part of b's spread that is left when the best multiple of a plus a constant is taken away."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    gain = (a * b).sum(1) / ((a * a).sum(1) + 1e-6)
    return np.sqrt(((b - gain[:, None] * a) ** 2).mean(1) / ((b * b).mean(1) + 1e-6))


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
