"""Shots of a film: cuts by PySceneDetect's adaptive detector, dissolves and fades by how frames blend.

Between the last picture a of one shot and the first picture b of the next, a dissolve shows (1 - t) a + t b with t
rising evenly; a fade is the same with black in place of one of them. So a stretch is one if its pictures lie on
the straight line from its first to its last in even steps, and these two have little in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from worldline.errors import UserError

Range = tuple[int, int, str]  # first frame, end frame, and "shot", "dissolve" or "fade"
SECONDS = (2.4, 2.0, 1.6, 1.3, 1.0, 0.8, 0.65, 0.5, 0.4)  # that a dissolve may last; shorter ones are cuts
WITHIN = np.arange(1, 8) / 8  # where between its ends a dissolve is looked at
TINY = (16, 9)  # columns and rows of the pictures that are held against each other
NOISE = 0.5  # levels by which a codec may change such a picture
CHUNK = 4096  # starts looked at together


@dataclass(frozen=True)
class Shots:
    """Where a film is cut. The first two are AdaptiveDetector's `adaptive_threshold` and `min_content_val`."""

    ratio: float = 3.0  # change of a frame over that of its neighbours
    change: float = 10.0  # levels of hue, saturation and value
    dissolves: bool = True
    contrast: float = 10.0  # levels between the ends of a dissolve
    bend: float = 0.12  # how far from even steps it may run
    residue: float = 0.15  # how far from the straight line, as a part of the distance between its ends
    novelty: float = 0.3  # the part of the last picture that no change of brightness of the first explains
    unrest: float = 0.8  # how fast pictures may change right before it and after it, as a part of its own speed

    def begin(self, rate: float) -> Finder:
        """A finder for one file of `rate` frames a second. Raises UserError without the extra `data`."""
        return Finder(self, rate)


class Finder:
    """Sees every frame of one file, then tells its ranges."""

    def __init__(self, plan: Shots, rate: float) -> None:
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import AdaptiveDetector
        except ImportError:
            raise UserError("shots need the extra `data`; install it with `pip install 'worldline[data]'`") from None
        self.plan, self.rate, self.timecode = plan, rate, FrameTimecode
        self.detector = AdaptiveDetector(plan.ratio, min_scene_len=0, min_content_val=plan.change)
        self.cuts: list[int] = []
        self.tiny: list[np.ndarray] = []
        self.frames = 0

    def see(self, picture: np.ndarray) -> None:
        """One frame uint8 (h, w, 3) BGR."""
        import cv2

        timecode = self.timecode(self.frames, self.rate)
        self.cuts += [cut.frame_num for cut in self.detector.process_frame(timecode, picture)]
        if self.plan.dissolves:
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
        """Dissolves and fades, from the last frame before to the first after; the longest that fits counts."""
        if len(self.tiny) < 8:
            return []
        pictures = np.stack(self.tiny)  # uint8 (frames, TINY)
        taken = np.zeros(len(pictures), bool)
        found: list[Range] = []
        for span in sorted({max(6, round(seconds * self.rate)) for seconds in SECONDS}, reverse=True):
            fits = [_fits(pictures, start, span, self.plan) for start in range(0, len(pictures) - span, CHUNK)]
            for _, start in sorted(pair for some in fits for pair in some):
                if not taken[start : start + span + 1].any():
                    taken[start : start + span + 1] = True
                    flat = _flat(pictures[[start, start + span]]).any()
                    found.append((start, start + span, "fade" if flat else "dissolve"))
        return _merged(sorted(found), pictures)


def _fits(pictures: np.ndarray, offset: int, span: int, plan: Shots) -> list[tuple[float, int]]:
    """(misfit, start) of every dissolve of `span` frames that begins in the chunk at `offset`."""
    starts = np.arange(offset, min(offset + CHUNK, len(pictures) - span))
    a, b = pictures[starts].astype(np.float32), pictures[starts + span].astype(np.float32)
    line = b - a
    length = np.sqrt((line**2).mean(1)) + 1e-6
    flat = _flat(a) | _flat(b)
    good = (length > plan.contrast) & (flat | (_unexplained(a, b) > plan.novelty))
    # Anything that moves smoothly runs straight for a short time; but it also moves before and after.
    aside = max(2, span // 4)
    most = plan.unrest * length * aside / span + NOISE
    before, after = starts - aside, starts + span + aside
    calm = _distance(a, pictures[np.maximum(before, 0)]) < most
    calm &= _distance(b, pictures[np.minimum(after, len(pictures) - 1)]) < most
    good &= calm & (flat | ((before >= 0) & (after < len(pictures))))
    misfit = np.zeros(len(starts))
    for share in sorted(WITHIN, key=lambda share: abs(share - 0.5)):  # the middle tells most, so it comes first
        rows = np.flatnonzero(good)
        k = round(share * span)
        off = pictures[starts[rows] + k].astype(np.float32) - a[rows]
        t = (off * line[rows]).mean(1) / length[rows] ** 2
        bend = np.abs(t - k / span)
        residue = np.sqrt(((off - t[:, None] * line[rows]) ** 2).mean(1)) / length[rows]
        good[rows] = (bend < plan.bend) & (residue < plan.residue)
        misfit[rows] = np.maximum(misfit[rows], bend + residue)
    return [(float(misfit[row]), int(starts[row])) for row in np.flatnonzero(good)]


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
    return (pictures.std(1) < 5) & ((mean < 24) | (mean > 235))


def _merged(found: list[Range], pictures: np.ndarray) -> list[Range]:
    """A fade out, the black after it and the fade in are one transition."""
    out: list[Range] = []
    for first, last, kind in found:
        if out and out[-1][2] == kind == "fade" and _flat(pictures[out[-1][1] : first + 1]).all():
            out[-1] = (out[-1][0], last, "fade")
        else:
            out.append((first, last, kind))
    return out


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
