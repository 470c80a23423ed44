"""What tracks and background do: the camera's motion, each object's motion, hidden intervals, onsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from worldline.worlds.tracks import Field, Track

STILL_X = 0.13  # half shorter sides: less is jitter
STROKE = 0.14  # a vertical stroke must be longer than this
RATIO = 1.2  # log-area change per vertical travel above which an object came nearer or went away
TURN = 0.036  # spread of log width over height that turning makes in a cube
SLACK = {"static": 1.0, "pan": 1.6, "zoom": 1.6, "orbit": 2.8}  # what a camera adds is taken off only roughly
PIVOT = -0.42  # height in view of the floor that an orbit leaves in place
# Whole-clip strengths tried for each kind of camera: shift, log scale, shear, in half shorter sides.
STRENGTHS = {
    "pan": (0.3, 0.45, 0.6, 0.75, 0.9),
    "zoom": (0.18, 0.3, 0.44, 0.6),
    "orbit": (1.0, 1.6, 2.2, 2.8, 3.3, 3.8),
}
STRIPS = 6
FLICKER = 6e-5  # variance of brightness that nobody sees
CAMERA_GAIN = 0.15  # mean log-variance that a moving camera must explain
ZOOM_GAIN = 0.02  # enough for a zoom where the objects move as a zoom moves them
PITCH = 0.46  # height of the vanishing point of the floor above the picture's centre


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
    total = len(field.labels)
    if total < 3:
        return CameraMotion("static", 0.0, 0.0)
    picked = np.linspace(0, total - 1, min(total, 17)).round().astype(int)
    grey = ndimage.gaussian_filter(field.frames[picked].mean(-1), (0, 0.8, 0.8))
    empty = field.labels[picked] == 0
    # Beside an object lies its shadow, which moves with it. A zoom leaves no room for that margin, and needs it less.
    near, wide = (ndimage.minimum_filter(empty, size) for size in ((1, 7, 7), (1, 7, 35)))
    # A floor's brightness falls row by row; only a zoom moves rows, so only a zoom is judged with them.
    flat = (grey - _masked_mean(grey, near, (1, 2))).astype(np.float32)
    level = (grey - _masked_mean(grey, near, (2,))).astype(np.float32)
    views = {"pan": (level, wide), "zoom": (flat, near), "orbit": (level, wide)}
    still = {kind: _restlessness(*view, kind, 0.0) for kind, view in views.items()}
    tried = [
        (_spread_gain(still[kind] - _restlessness(*view, kind, sign * strength)), kind, sign * strength)
        for kind, view in views.items()
        for strength in STRENGTHS[kind]
        for sign in (1, -1)
    ]
    growth = float(np.median([change(np.log(np.maximum(t.area, 1)), t.visible) for t in tracks])) if tracks else None
    tried = [(g, kind, s) for g, kind, s in tried if kind != "zoom" or growth is None or _agrees(growth, 2 * s)]
    gain, kind, strength = max(tried, default=(0.0, "pan", 0.0))
    if gain < (_zoom_gain(tracks) if kind == "zoom" else CAMERA_GAIN):
        return CameraMotion("static", 0.0, gain)
    names = {"pan": ("left", "right"), "zoom": ("in", "out"), "orbit": ("right", "left")}[kind]
    return CameraMotion(f"{kind} {names[strength < 0]}", strength, gain)


def _zoom_gain(tracks: list[Track]) -> float:
    """Less floor is asked for where the objects grow as a zoom makes them, more where they grow as if they came nearer.

    By a zoom the foot of an object, at v < 0, moves by v per unit of log-scale; coming nearer on the floor moves it by
    v - PITCH, as the vanishing point lies PITCH above the picture's centre.
    """
    paces = []
    for track in tracks:
        height = track.box[:, 3] - track.box[:, 2]
        growth = change(np.log(np.maximum(height, 1e-3)), track.visible & track.whole)
        if abs(growth) > 0.12:
            pace = change(track.box[:, 2], track.visible & track.whole) / growth
            paces.append(pace - float(np.nanmedian(track.box[:, 2])))
    if not paces:
        return CAMERA_GAIN
    return ZOOM_GAIN if float(np.median(paces)) > -PITCH / 2 else 4 * CAMERA_GAIN


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


def _spread_gain(strips: np.ndarray) -> float:
    """A camera stills the whole floor, a shadow that moves stills a part: the second least of the strips counts."""
    known = np.sort(strips[np.isfinite(strips)])
    return float(known[min(1, len(known) - 1)]) if len(known) else 0.0


def _restlessness(grey: np.ndarray, clear: np.ndarray, kind: str, strength: float) -> np.ndarray:
    """Log-variance through time after undoing a camera motion of whole-clip `strength`.

    Means over `STRIPS` upright strips of the floor, NaN where objects cover a strip.
    """
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
    logs = np.where(used, np.log(variance + FLICKER), 0.0)
    edges = np.linspace(0, logs.shape[1], STRIPS + 1).round().astype(int)[:-1]
    pixels = np.add.reduceat(used.sum(0), edges)
    return np.where(
        pixels >= 0.3 * used.size / STRIPS, np.add.reduceat(logs.sum(0), edges) / np.maximum(pixels, 1), np.nan
    )


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
    turning = _turning(track, at)
    full = np.interp(np.arange(total), at, x), np.interp(np.arange(total), at, y)
    smooth_x, smooth_y = (ndimage.median_filter(v, 3, mode="nearest") if total > 8 else v for v in full)
    dx = float(smooth_x[-1] - smooth_x[0])
    dsize = (
        change(np.interp(np.arange(total), at, size), np.ones(total, bool)) if total > 2 else float(size[-1] - size[0])
    )
    strokes = _strokes(smooth_y)
    dy = sum(strokes)
    name = _name(dx, float(smooth_y[-1] - smooth_y[0]), dsize, strokes, SLACK[camera.name.split()[0]])
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


def _name(dx: float, dy: float, dsize: float, strokes: list[float], slack: float) -> str:
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


def _turning(track: Track, at: np.ndarray) -> float:
    """Relative spread through time of width over height, smoothed over a fifth of the clip, in whole frames."""
    whole = at[track.whole[at]]
    if len(whole) < 5:
        return 0.0
    slim = ndimage.uniform_filter1d(np.log(track.slim[whole]), max(1, round(len(whole) / 5.5)), mode="nearest")
    return float(slim.std())


def _onset(x: np.ndarray) -> float:
    """Share of the clip at which sideways motion has covered a tenth of its way (1 where there is none)."""
    away = np.abs(x - x[0])
    reach = max(0.12 * float(away.max()), 0.05)
    started = np.flatnonzero(away > reach)
    return float(started[0] / max(len(x) - 1, 1)) if len(started) else 1.0


def _hidden(track: Track) -> float:
    """Share of the clip for which the object is covered between two sightings."""
    area = track.area
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
