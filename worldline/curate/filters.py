"""Scores that need no model: sharpness, exposure, motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from worldline.curate.stage import Judgement, Look, Stage

LUMA_SIDE = 480  # short side at which sharpness is measured


@dataclass(frozen=True)
class Sharpness(Stage):
    """One minus the blur of Crete et al. 2007 ("The blur effect", eq. 2-6): what a further blur would still take away.

    0 for a picture that a box of nine does not change, about 0.3 to 0.5 for sharp ones, whatever they show.
    """

    name: ClassVar[str] = "sharpness"
    close: ClassVar[bool] = True

    least: float = 0.15

    def see(self, look: Look) -> float:
        import cv2

        luma = np.ascontiguousarray(look.luma())
        whole = min(luma.shape) // LUMA_SIDE  # by a whole number first, which is quicker than the mean over any area
        if whole > 1:
            luma = cv2.resize(luma, (luma.shape[1] // whole, luma.shape[0] // whole), interpolation=cv2.INTER_AREA)
        scale = LUMA_SIDE / min(luma.shape)
        if scale < 1:
            luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        # Eight bits turn the slopes of a blurred picture into steps, which would pass for edges: sixteen times luma.
        smooth = cv2.sepFilter2D(luma, cv2.CV_16S, _SMOOTH, _SMOOTH)
        return min(_lost_by_blur(smooth), _lost_by_blur(cv2.transpose(smooth)))

    def judge(self, notes: Sequence[float], size: tuple[int, int]) -> Judgement:
        sharpness = float(np.median(notes))
        reason = f"blurred: sharpness {sharpness:.2f}, at least {self.least:g}" if sharpness < self.least else ""
        return Judgement({"sharpness": sharpness}, reason=reason)


_SMOOTH = np.array([1, 2, 1], np.float32)
BOX = 9  # pixels across of the further blur


def _lost_by_blur(luma: np.ndarray) -> float:
    """The share of differences between neighbours down that a box blur down takes away; `luma` int16, at most 4080.

    Neighbours of the blurred picture differ by a ninth of what the ends of their boxes do. In whole numbers, times
    nine, that fits 16 bits.
    """
    import cv2

    height, middle = len(luma) - BOX, BOX // 2
    if height < 1:
        return 0.0
    above, below = luma[middle : middle + height], luma[middle + 1 : middle + 1 + height]
    sharp = cv2.absdiff(below, above).view(np.uint16) * np.uint16(BOX)
    soft = cv2.absdiff(luma[BOX:], luma[:height]).view(np.uint16)
    total = cv2.sumElems(sharp)[0]
    return cv2.sumElems(cv2.subtract(sharp, soft))[0] / total if total else 0.0


@dataclass(frozen=True)
class Exposure(Stage):
    """Mean and spread of the levels of a clip, of 255."""

    name: ClassVar[str] = "exposure"
    close: ClassVar[bool] = False

    darkest: float = 20.0
    brightest: float = 235.0
    contrast: float = 6.0

    def see(self, look: Look) -> tuple[float, float]:
        import cv2

        mean, spread = cv2.meanStdDev(look.grey)
        return float(mean[0, 0]), float(spread[0, 0])

    def judge(self, notes: Sequence[tuple[float, float]], size: tuple[int, int]) -> Judgement:
        level, contrast = (float(np.median(values)) for values in zip(*notes, strict=True))
        reason = ""
        if level < self.darkest:
            reason = f"too dark: level {level:.0f}, at least {self.darkest:g}"
        elif level > self.brightest:
            reason = f"too bright: level {level:.0f}, at most {self.brightest:g}"
        elif contrast < self.contrast:
            reason = f"one colour: contrast {contrast:.1f}, at least {self.contrast:g}"
        return Judgement({"level": level, "contrast": contrast}, reason=reason)


# Camera, as shares of the picture's height a second; turn in radians, zoom as a rate.
Step = tuple[float, float, float, float, float, float, float]  # x, y, zoom, turn, flow, change, seconds


@dataclass(frozen=True)
class Motion(Stage):
    """How much moves, and how the camera does, from dense optical flow (DIS, Kroeger et al. 2016) between looks.

    The camera is the similarity that fits most of the flow. `motion` is the mean flow in picture heights a second,
    `activity` the share of looks in which anything changes, `shake` how much the camera's velocity jumps from look
    to look, in picture heights a second.
    """

    name: ClassVar[str] = "motion"
    close: ClassVar[bool] = False

    least_activity: float = 0.05
    most_motion: float = 2.5
    most_shake: float = 0.08
    change: float = 3.0  # levels: a block of the picture that changes by less stands still

    def see(self, look: Look) -> Step | None:
        import cv2

        if look.before is None or look.before.shape != look.grey.shape or look.elapsed <= 0:
            return None
        flow = _flow(look.before, look.grey)
        x, y, zoom, turn = _similarity(flow)
        height = look.grey.shape[0]
        per_second = 1 / look.elapsed
        size = cv2.mean(cv2.magnitude(*cv2.split(flow)))[0]
        camera = (x / height * per_second, y / height * per_second, zoom * per_second, turn * per_second)
        return (*camera, size / height * per_second, _largest_change(look.before, look.grey), look.elapsed)

    def judge(self, notes: Sequence[Step | None], size: tuple[int, int]) -> Judgement:
        steps = np.array([step for step in notes[1:] if step])  # the first look is held against another shot
        if len(steps) == 0:
            return Judgement(remark="too short to measure")
        activity = float((steps[:, 5] > self.change).mean())
        motion = float(steps[:, 4].mean())
        shake = _shake(steps)
        scores = {"activity": activity, "motion": motion, "shake": shake}
        labels = {"camera": camera(steps, shake > self.most_shake)}
        reason = ""
        if activity < self.least_activity:
            reason = f"frozen: something changes in {activity:.0%} of it, at least {self.least_activity:.0%}"
        elif shake > self.most_shake:
            reason = f"shaky: {shake:.2f} heights a second, at most {self.most_shake:g}"
        elif motion > self.most_motion:
            reason = f"too fast: {motion:.1f} heights a second, at most {self.most_motion:g}"
        return Judgement(scores, labels, reason)


def _flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Optical flow float32 (h, w, 2) in pixels, x then y; of a picture too small for it, none."""
    if min(before.shape) < 16:
        return np.zeros((*before.shape, 2), np.float32)
    return _flow_finder().calc(before, after, None)  # type: ignore[no-any-return]


@cache
def _flow_finder() -> Any:
    import cv2

    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)


def _similarity(flow: np.ndarray) -> tuple[float, float, float, float]:
    """Shift in pixels, zoom and turn of the picture's middle: least squares, thrice reweighted towards the majority.

    In complex numbers a similarity moves a point z by shift + (zoom + i turn) z, a line that is fitted in closed form.
    """
    sparse = flow[4::8, 4::8]
    if not sparse.size:
        return 0.0, 0.0, 0.0, 0.0
    seen = sparse.reshape(-1, 2).astype(np.float64).view(np.complex128)[:, 0]
    points, squares = _points(*sparse.shape[:2])
    shift, factor = complex(_middle(seen.real), _middle(seen.imag)), 0j
    for _ in range(3):
        distance = np.abs(seen - shift - factor * points)
        weight = 1 / (1 + (distance / (0.1 + _middle(distance))) ** 2)
        total = weight.sum()
        middle, mean = weight @ points / total, weight @ seen / total
        spread = weight @ squares - total * abs(middle) ** 2
        factor = np.vdot(weight * points, seen) - total * middle.conjugate() * mean
        factor = factor / spread if spread > 1e-9 else 0j  # a single point does not turn
        shift = mean - factor * middle
    return shift.real, shift.imag, factor.real, factor.imag


def _middle(values: np.ndarray) -> float:
    """The upper median, which takes a tenth of the time of `np.median`."""
    half = len(values) // 2
    return float(np.partition(values, half)[half])


@cache
def _points(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Points 8 pixels apart around the middle, across + i down, and the squares of their distances from it, both
    (rows columns,)."""
    down, across = (8.0 * (axis - axis.mean()).ravel() for axis in np.mgrid[:rows, :columns])
    return across + 1j * down, across**2 + down**2


def _largest_change(before: np.ndarray, after: np.ndarray) -> float:
    """The largest mean change of any block of about 8 by 8 pixels, in levels."""
    import cv2

    height, width = before.shape
    blocks = (max(1, width // 8), max(1, height // 8))
    return float(cv2.resize(cv2.absdiff(before, after), blocks, interpolation=cv2.INTER_AREA).max())


def _shake(steps: np.ndarray) -> float:
    """The median distance of the camera's velocity from the mean of those before and after it."""
    velocity = steps[:, :2]
    if len(velocity) < 3:
        return 0.0
    jump = velocity[1:-1] - (velocity[:-2] + velocity[2:]) / 2
    return float(np.median(np.hypot(jump[:, 0], jump[:, 1])))


STILL = {"shift": 0.02, "zoom": 0.02, "turn": 0.02}  # heights, rate and radians a second that no eye minds


def camera(steps: np.ndarray, shaky: bool) -> str:
    """static, pan left or right, tilt up or down, zoom in or out, roll, shaky, or moving where it is several of these.

    The picture moves against the camera: a pan to the right moves it to the left.
    """
    if shaky:
        return "shaky"
    x, y, zoom, turn = np.median(steps[:, :4], axis=0)
    strength = {
        "pan": abs(x) / STILL["shift"],
        "tilt": abs(y) / STILL["shift"],
        "zoom": abs(zoom) / STILL["zoom"],
        "roll": abs(turn) / STILL["turn"],
    }
    kind, most = max(strength.items(), key=lambda item: item[1])
    if most < 1:
        return "static"
    if sorted(strength.values())[-2] > 0.6 * most:
        return "moving"
    words = {"pan": ("right", "left", x), "tilt": ("down", "up", y), "zoom": ("out", "in", zoom)}
    if kind == "roll":
        return "roll"
    back, forth, value = words[kind]
    return f"{kind} {forth if value > 0 else back}"
