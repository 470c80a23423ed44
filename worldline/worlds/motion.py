"""What tracks and background do: the camera's motion, each object's motion, hidden intervals, onsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from worldline.worlds.tracks import Field, Track

STILL_X = 0.13  # half shorter sides: less is jitter
STROKE = 0.14  # a vertical stroke must be longer than this
RATIO = 1.2  # log-area change per vertical travel above which an object came nearer or went away
TURN = 0.055  # relative spread of a cube's width that turning makes
PIVOT = -0.42  # height in view of the floor that an orbit leaves in place
# Whole-clip strengths tried for each kind of camera: shift, log scale, shear, in half shorter sides.
STRENGTHS = {
    "pan": (0.3, 0.45, 0.6, 0.75, 0.9),
    "zoom": (0.18, 0.3, 0.44, 0.6),
    "orbit": (1.0, 1.6, 2.2, 2.8, 3.3, 3.8),
}
CAMERA_GAIN = 0.25  # mean log-variance that a moving camera must explain
ZOOM_GAIN = 0.13  # enough for a zoom, as the object's growth must agree with it


@dataclass(frozen=True)
class CameraMotion:
    """`name` of `scene.CAMERAS`, signed whole-clip `strength` (see `STRENGTHS`) and the log-variance it explains."""

    name: str
    strength: float
    gain: float


def camera_motion(field: Field, tracks: list[Track]) -> CameraMotion:
    """Try each camera: undo its motion frame by frame and see how still the floor becomes.

    A pan shifts the picture, a zoom scales it, an orbit shears it about a fixed row (the shift of a floor point is
    linear in 1 / depth, and so in its height in the picture). Averaging over all frames makes noise harmless, and
    taking the logarithm per pixel keeps a moving shadow, strong but local, from passing for a camera.
    """
    total, height, width = field.labels.shape
    if total < 3:
        return CameraMotion("static", 0.0, 0.0)
    picked = np.linspace(0, total - 1, min(total, 17)).round().astype(int)
    grey = ndimage.gaussian_filter(field.frames[picked].mean(-1), (0, 0.8, 0.8))
    clear = ndimage.minimum_filter(field.labels[picked] == 0, (1, 7, 7))
    # A floor's brightness falls row by row; only a zoom moves rows, so only a zoom is judged with them.
    flat = (grey - _masked_mean(grey, clear, (1, 2))).astype(np.float32)
    level = (grey - _masked_mean(grey, clear, (2,))).astype(np.float32)
    views = {"pan": level, "zoom": flat, "orbit": level}
    still = {id(view): _restlessness(view, clear, "pan", 0.0) for view in (flat, level)}
    tried = [
        (still[id(views[kind])] - _restlessness(views[kind], clear, kind, sign * strength), kind, sign * strength)
        for kind, strengths in STRENGTHS.items()
        for strength in strengths
        for sign in (1, -1)
    ]
    growth = float(np.median([change(np.log(np.maximum(t.area, 1)), t.visible) for t in tracks])) if tracks else None
    tried = [(g, kind, s) for g, kind, s in tried if kind != "zoom" or growth is None or _agrees(growth, 2 * s)]
    gain, kind, strength = max(tried, default=(0.0, "pan", 0.0))
    if gain < (ZOOM_GAIN if kind == "zoom" and tracks else CAMERA_GAIN):
        return CameraMotion("static", 0.0, gain)
    names = {"pan": ("left", "right"), "zoom": ("in", "out"), "orbit": ("right", "left")}[kind]
    return CameraMotion(f"{kind} {names[strength < 0]}", strength, gain)


def _agrees(growth: float, expected: float) -> bool:
    return growth * expected > 0 and 0.5 < growth / expected < 1.8


def change(values: np.ndarray, used: np.ndarray) -> float:
    """Change over the whole clip of a line through the values at `used` frames; 0 where fewer than two are."""
    at = np.flatnonzero(used & np.isfinite(values))
    if len(at) < 2:
        return 0.0
    return float(np.polyfit(at, values[at], 1)[0] * (len(values) - 1))


def _masked_mean(grey: np.ndarray, clear: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (grey * clear).sum(axes, keepdims=True) / np.maximum(clear.sum(axes, keepdims=True), 1)


def _restlessness(grey: np.ndarray, clear: np.ndarray, kind: str, strength: float) -> float:
    """Mean over the floor of the log-variance through time, after undoing a camera motion of whole-clip `strength`."""
    total, height, width = grey.shape
    half = min(height, width) / 2
    top = round(height / 2 + 0.3 * half)  # below the horizon
    y, x = np.mgrid[top:height:2, 0:width:2].astype(np.float32)
    v = (height / 2 - y - 0.5) / half
    share = (np.arange(total, dtype=np.float32) / (total - 1) - 0.5)[:, None, None]
    if kind == "zoom":
        scale = np.exp(share * strength)
        xs, ys = (x - width / 2 + 0.5) * scale + width / 2 - 0.5, (y - height / 2 + 0.5) * scale + height / 2 - 0.5
    else:
        pace = strength if kind == "pan" else strength * (v - PIVOT)
        xs, ys = x + share * pace * half, np.broadcast_to(y, (total, *y.shape))
    inside = (xs >= 0) & (xs <= width - 1) & (ys >= 0) & (ys <= height - 1)
    ix = np.clip(xs, 0, width - 1.001)
    x0 = ix.astype(np.int32)
    fx = ix - x0
    iy = np.clip(np.rint(ys), 0, height - 1).astype(np.int32)
    at = (np.arange(total, dtype=np.int32)[:, None, None] * height + iy) * width + x0
    flat = grey.ravel()
    values = flat[at] * (1 - fx) + flat[at + 1] * fx
    valid = (inside & clear.ravel()[at]).astype(np.float32)
    count = valid.sum(0)
    mean = (values * valid).sum(0) / np.maximum(count, 1)
    variance = ((values - mean) ** 2 * valid).sum(0) / np.maximum(count - 1, 1)
    used = count >= max(3, 0.4 * total)
    return float(np.log(variance[used] + 4e-5).mean()) if used.sum() > 50 else 0.0


@dataclass(frozen=True)
class ObjectMotion:
    """`name` of `scene.MOTIONS`; `travel` (right, up, log-area) over the clip; `onset` share of the clip at which it
    starts; `hidden` share during which it was covered in the middle of its path; `turning` spread of its width."""

    name: str
    travel: tuple[float, float, float]
    onset: float
    hidden: float
    turning: float


def object_motion(track: Track, camera: CameraMotion) -> ObjectMotion:
    """Motion of one object in a still world: what the camera adds is taken off first."""
    total = len(track.area)
    at = np.flatnonzero(track.visible & np.isfinite(track.centre[:, 0]))
    if len(at) < 2:
        return ObjectMotion("still", (0.0, 0.0, 0.0), 1.0, 0.0, 0.0)
    share = at / max(total - 1, 1) - 0.5
    x, y = track.centre[at, 0].copy(), track.centre[at, 1].copy()
    size = np.log(track.area[at])
    match camera.name.split()[0]:
        case "pan":
            x -= camera.strength * share
        case "zoom":
            x, y, size = (
                x / np.exp(camera.strength * share),
                y / np.exp(camera.strength * share),
                size - 2 * camera.strength * share,
            )
        case "orbit":
            x -= camera.strength * share * (track.box[at, 2] - PIVOT)
    turning = _turning(track, at, camera)
    full = np.interp(np.arange(total), at, x), np.interp(np.arange(total), at, y)
    smooth_x, smooth_y = (ndimage.median_filter(v, 3, mode="nearest") if total > 8 else v for v in full)
    dx = float(smooth_x[-1] - smooth_x[0])
    dsize = (
        change(np.interp(np.arange(total), at, size), np.ones(total, bool)) if total > 2 else float(size[-1] - size[0])
    )
    strokes = _strokes(smooth_y)
    dy = sum(strokes)
    name = _name(dx, float(smooth_y[-1] - smooth_y[0]), dsize, strokes, camera.name != "static")
    if name == "still" and turning > TURN and camera.name == "static":
        name = "spin"
    return ObjectMotion(name, (dx, dy, dsize), _onset(smooth_x), _hidden(track), turning)


def _strokes(y: np.ndarray) -> list[float]:
    """Vertical strokes longer than `STROKE`, signed, in order: a bounce is [-, +, ...], a jump [+, -]."""
    strokes: list[float] = []
    low = high = y[0]
    start, direction = y[0], 0
    for value in y[1:]:
        low, high = min(low, value), max(high, value)
        if direction >= 0 and high - value > STROKE:
            if direction > 0:
                strokes.append(float(high - start))
            start, direction, low, high = high, -1, value, value
        elif direction <= 0 and value - low > STROKE:
            if direction < 0:
                strokes.append(float(low - start))
            start, direction, low, high = low, 1, value, value
    if direction:
        strokes.append(float((high if direction > 0 else low) - start))
    return strokes


def _name(dx: float, dy: float, dsize: float, strokes: list[float], moving_camera: bool) -> str:
    slack = 1.6 if moving_camera else 1.0
    if len(strokes) > 1 and max(abs(s) for s in strokes) > 1.2 * abs(dx):
        return "bounce" if strokes[0] < 0 else "jump"
    depth = abs(dsize) > 0.2 * slack and abs(dsize) > RATIO * max(abs(dy), 0.5 * abs(dx))
    if depth and (dy < 0.06) == (dsize > 0):
        return "toward" if dsize > 0 else "away"
    if abs(dx) > STILL_X * slack and abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    if abs(dy) > STROKE * slack:
        return "rise" if dy > 0 else "fall"
    return "still"


def _turning(track: Track, at: np.ndarray, camera: CameraMotion) -> float:
    """Relative spread of width over height in whole frames, after taking off a steady trend."""
    whole = at[track.whole[at]]
    if len(whole) < 5:
        return 0.0
    box = track.box[whole]
    ratio = (box[:, 1] - box[:, 0]) / np.maximum(box[:, 3] - box[:, 2], 1e-3)
    return float(ratio.std() / ratio.mean())


def _onset(x: np.ndarray) -> float:
    """Share of the clip at which sideways motion has covered a tenth of its way (1 where there is none)."""
    away = np.abs(x - x[0])
    reach = max(0.12 * float(away.max()), 0.05)
    started = np.flatnonzero(away > reach)
    return float(started[0] / max(len(x) - 1, 1)) if len(started) else 1.0


def _hidden(track: Track) -> float:
    """Share of the clip for which the object is covered between two sightings."""
    area = np.where(track.visible, track.area, 0.0)
    level = np.percentile(area[area > 0], 80) if (area > 0).any() else 1.0
    seen = np.flatnonzero(area > 0.5 * level)
    if len(seen) < 2:
        return 0.0
    inside = area[seen[0] : seen[-1] + 1]
    return float((inside < 0.3 * level).mean() * len(inside) / len(area))


def gauge_features(track: Track, camera: CameraMotion, motion: ObjectMotion) -> np.ndarray:
    """(8,) what size and speed are read from: log height and width and the floor line where it stands nearest."""
    ok = np.isfinite(track.box[:, 0]) & track.visible
    whole = ok & track.whole
    if camera.name != "static":  # mid-clip, where every camera passes its home position
        middle = np.abs(np.arange(len(ok)) / max(len(ok) - 1, 1) - 0.5) < 0.2
        whole, ok = (whole & middle, ok & middle) if (ok & middle).any() else (whole, ok)
    use = np.flatnonzero(whole if whole.any() else ok)
    box = track.box[use]
    low = box[:, 2] <= box[:, 2].min() + 0.04
    height = np.log(np.maximum(np.median(box[low, 3] - box[low, 2]), 1e-2))
    width = np.log(np.maximum(np.median(box[low, 1] - box[low, 0]), 1e-2))
    bottom = float(np.median(box[low, 2]))
    area = np.log(np.median(track.area[use][low]) + 1)
    dx, dy, dsize = motion.travel
    return np.array([height, width, area, bottom, abs(dx), abs(dy), abs(dsize), np.log(abs(dx) + 0.05)], np.float32)
