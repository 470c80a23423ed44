"""Shots of a film: cuts by PySceneDetect's adaptive detector, dissolves and fades by how frames blend.

Between the last picture a of one shot and the first picture b of the next, a dissolve shows (1 - t) a + t b with t
rising evenly; a fade is the same with black in place of one of them. So a stretch is one if its pictures lie on
the straight line from its first to its last in even steps, and these two have little in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldline.errors import UserError

Range = tuple[int, int, str]  # first frame, end frame, and "shot", "dissolve" or "fade"
SPANS = (16, 12, 8, 6, 4, 3)  # looks that a dissolve lasts, at eight a second: 0.4 to 2 seconds
TINY = (16, 9)  # columns and rows of the pictures that are held against each other


@dataclass(frozen=True)
class Shots:
    """Where a film is cut. The first two are AdaptiveDetector's `adaptive_threshold` and `min_content_val`."""

    ratio: float = 3.0  # change of a frame over that of its neighbours
    change: float = 15.0  # levels of hue, saturation and value
    dissolves: bool = True
    bend: float = 0.2  # how far from even steps a dissolve may run
    residue: float = 0.35  # how far from the straight line, as a part of the distance between its ends
    contrast: float = 18.0  # levels between its ends

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
        self.looks: list[int] = []
        self.frames = 0

    def see(self, picture: np.ndarray, look: bool) -> None:
        """One frame uint8 (h, w, 3) BGR; `look` says that it is one of the eight a second."""
        import cv2

        timecode = self.timecode(self.frames, self.rate)
        self.cuts += [cut.frame_num for cut in self.detector.process_frame(timecode, picture)]
        if look and self.plan.dissolves:
            self.tiny.append(cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA))
            self.looks.append(self.frames)
        self.frames += 1

    def ranges(self) -> list[Range]:
        """The ranges of all frames, in order and without holes."""
        blends = [(self.looks[a], self.looks[b], kind) for a, b, kind in self._blends()]
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

    def _blends(self) -> list[tuple[int, int, str]]:
        """Dissolves and fades as pairs of looks; of those that overlap the longest, which is tried first."""
        if len(self.tiny) < 4:
            return []
        pictures = np.stack(self.tiny).astype(np.float32).reshape(len(self.tiny), -1)
        taken = np.zeros(len(pictures), bool)
        found = []
        for span in SPANS:
            if span >= len(pictures):
                continue
            fits, misfit = self._fits(pictures, span)
            for start in sorted(np.flatnonzero(fits), key=lambda start: (misfit[start], start)):
                if not taken[start : start + span + 1].any():
                    taken[start : start + span + 1] = True
                    found.append((int(start), int(start) + span, self._kind(pictures, start, start + span)))
        return _merged(sorted(found), pictures)

    def _fits(self, pictures: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
        """For every start (n,): whether `span` looks from it are a blend, and how far they are from a perfect one."""
        a, b = pictures[:-span], pictures[span:]
        line = b - a
        length = np.sqrt((line**2).mean(1)) + 1e-6
        bend, residue = np.zeros(len(a)), np.zeros(len(a))
        for k in range(1, span):
            off = pictures[k : k + len(a)] - a
            t = (off * line).mean(1) / length**2
            bend = np.maximum(bend, np.abs(t - k / span))
            residue = np.maximum(residue, np.sqrt(((off - t[:, None] * line) ** 2).mean(1)) / length)
        flat = np.minimum(a.std(1), b.std(1)) < 6
        common = _correlation(a, b)
        plan = self.plan
        fits = (length > plan.contrast) & (bend < plan.bend) & (residue < plan.residue) & (flat | (common < 0.6))
        return fits, bend + residue

    @staticmethod
    def _kind(pictures: np.ndarray, first: int, last: int) -> str:
        return "fade" if min(pictures[first].std(), pictures[last].std()) < 6 else "dissolve"


def _merged(found: list[tuple[int, int, str]], pictures: np.ndarray) -> list[tuple[int, int, str]]:
    """A fade out, the flat pictures after it and the fade in are one transition."""
    out: list[tuple[int, int, str]] = []
    for first, last, kind in found:
        if out and out[-1][2] == kind == "fade" and pictures[out[-1][1] : first + 1].std(1).max(initial=0) < 6:
            out[-1] = (out[-1][0], last, "fade")
        else:
            out.append((first, last, kind))
    return out


def _correlation(a: Any, b: Any) -> np.ndarray:
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-6)


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
        return [(a, b) for a, b in zip(marks, marks[1:], strict=False) if b > a]
