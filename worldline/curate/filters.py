"""Scores that need no model: sharpness, exposure, motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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
        scale = LUMA_SIDE / min(luma.shape)
        if scale < 1:
            luma = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        # Eight bits turn the slopes of a blurred picture into steps, which would pass for edges.
        smooth = cv2.GaussianBlur(luma.astype(np.float32), (3, 3), 0)
        return min(_lost_by_blur(smooth), _lost_by_blur(smooth.T.copy()))

    def judge(self, notes: Sequence[float], size: tuple[int, int]) -> Judgement:
        sharpness = float(np.median(notes))
        reason = f"blurred: sharpness {sharpness:.2f}, at least {self.least:g}" if sharpness < self.least else ""
        return Judgement({"sharpness": sharpness}, reason=reason)


def _lost_by_blur(luma: np.ndarray) -> float:
    """The share of differences between neighbours across that a box blur across takes away."""
    import cv2

    blurred = cv2.blur(luma, (9, 1))
    sharp = cv2.absdiff(luma[:, 1:], luma[:, :-1])
    soft = cv2.absdiff(blurred[:, 1:], blurred[:, :-1])
    return float(np.maximum(sharp - soft, 0).sum() / max(float(sharp.sum()), 1.0))


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
        if look.before is None or look.before.shape != look.grey.shape or look.elapsed <= 0:
            return None
        flow = _flow(look.before, look.grey)
        x, y, zoom, turn = _similarity(flow)
        height = look.grey.shape[0]
        per_second = 1 / look.elapsed
        size = float(np.hypot(flow[..., 0], flow[..., 1]).mean())
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
    import cv2

    if min(before.shape) < 16:
        return np.zeros((*before.shape, 2), np.float32)
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST).calc(before, after, None)  # type: ignore


def _similarity(flow: np.ndarray) -> tuple[float, float, float, float]:
    """Shift in pixels, zoom and turn of the picture's middle: least squares, thrice reweighted towards the majority.

    u = x + zoom p - turn q, v = y + turn p + zoom q at the point (p, q).
    """
    sampled = flow[4::8, 4::8]
    rows, columns = sampled.shape[:2]
    q, p = np.mgrid[:rows, :columns].astype(np.float64) * 8
    p, q = (p - p.mean()).ravel(), (q - q.mean()).ravel()
    u, v = sampled[..., 0].ravel().astype(np.float64), sampled[..., 1].ravel().astype(np.float64)
    x, y = float(np.median(u)), float(np.median(v))
    zoom = turn = 0.0
    for _ in range(3):
        off_u, off_v = u - (x + zoom * p - turn * q), v - (y + turn * p + zoom * q)
        off = np.hypot(off_u, off_v)
        weight = 1 / (1 + (off / (0.1 + np.median(off))) ** 2)
        total = weight.sum()
        mp, mq, mu, mv = ((weight * part).sum() / total for part in (p, q, u, v))
        dp, dq, du, dv = p - mp, q - mq, u - mu, v - mv
        spread = (weight * (dp**2 + dq**2)).sum() + 1e-9
        zoom = float((weight * (dp * du + dq * dv)).sum() / spread)
        turn = float((weight * (dp * dv - dq * du)).sum() / spread)
        x, y = float(mu - zoom * mp + turn * mq), float(mv - turn * mp - zoom * mq)
    return x, y, zoom, turn


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
