"""Reads what a video shows (objects, colours, shapes, count, motion, camera) and judges it against a scene.

It takes frames, not files, of anyone's making: any size, any length. Measured figures stand in docs/log.md.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from worldline.errors import UserError
from worldline.worlds.motion import CameraMotion, ObjectMotion, camera_motion, gauge_features, object_motion
from worldline.worlds.scene import SHAPES, SIZES, SPEEDS, TRAVELS, Scene, Thing
from worldline.worlds.tracks import Field, Track, find_tracks, working_size
from worldline.worlds.verify_nets import gauge, shape_log_probs, shipped_table, weights

HIDDEN = 0.06  # share of the clip behind a screen that counts as hidden
FAINT = 0.3  # log-variance explained (see motion.py) below which a camera needs objects at rest
SCREEN_EDGE = 1.0  # its upright edges against the steps in brightness within it
SIZE_SPLIT = math.sqrt(SIZES["small"] * SIZES["large"])
SPEED_SPLITS = (math.sqrt(SPEEDS["slow"] * SPEEDS[""]), math.sqrt(SPEEDS[""] * SPEEDS["fast"]))
ATTRIBUTES = ("colour", "shape", "count", "motion", "camera", "relation", "size", "speed")
REQUIRED = ATTRIBUTES[:6]  # what `all` asks for


@dataclass(frozen=True)
class ObjectReading:
    """One object. `track` (T, 2): centre, u right and v up in half shorter sides from the middle, NaN where unseen;
    `visible` (T,); of longer videos 129 frames are kept; `confidence` in 0..1 of the shape;
    `travel` (right, up, log-area) over the clip; `onset` and
    `hidden` are shares of the clip; `speed` is "" unless it travels slowly or fast."""

    colour: str
    shape: str
    size: str
    motion: str
    speed: str
    confidence: float
    travel: tuple[float, float, float]
    onset: float
    hidden: float
    track: np.ndarray = field(repr=False)
    visible: np.ndarray = field(repr=False)

    @property
    def place(self) -> float:
        """Where it is from left to right, on the whole."""
        return float(np.nanmedian(self.track[:, 0]))


@dataclass(frozen=True)
class Reading:
    """What a video shows. `screen`: a grey screen stands where an object is hidden for a while."""

    objects: tuple[ObjectReading, ...]
    camera: str
    screen: bool
    frames: int
    fps: float

    @property
    def count(self) -> int:
        return len(self.objects)


def read(frames: np.ndarray, fps: float = 16.0) -> Reading:
    """Read a video, uint8 (T, H, W, 3), of any size and length. Raises UserError for anything else."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise UserError(f"frames must be uint8 (T, H, W, 3) with T >= 1, not {frames.dtype} {frames.shape}")
    if min(frames.shape[1:3]) < 8:
        raise UserError(f"frames must be at least 8x8 pixels, not {frames.shape[2]}x{frames.shape[1]}")
    clip, tracks = find_tracks(working_size(frames), shipped_table())
    camera, motions = _motions(clip, tracks)
    objects = tuple(_object(track, motion, camera) for track, motion in zip(tracks, motions, strict=True))
    hidden = [t for t, o in zip(tracks, objects, strict=True) if o.hidden >= HIDDEN]
    screen = any(_screen_seen(clip, t) for t in hidden if not _behind_another(t, tracks))
    return Reading(objects, camera.name, screen, len(frames), fps)


def _object(track: Track, motion: ObjectMotion, camera: CameraMotion) -> ObjectReading:
    scores = shape_log_probs(weights(), track.crops).mean(0) if len(track.crops) else np.zeros(len(SHAPES))
    shape = SHAPES[int(scores.argmax())]
    # A round thing looks the same from every side.
    name = "still" if motion.name == "spin" and shape != "cube" else motion.name
    radius, span = np.exp(gauge(weights(), gauge_features(track, camera, motion)[None])[0])
    return ObjectReading(
        colour=track.colour,
        shape=shape,
        size="large" if radius > SIZE_SPLIT else "small",
        motion=name,
        speed=_speed(span) if name in TRAVELS else "",
        confidence=float(np.exp(scores.max()) / np.exp(scores).sum()),
        travel=motion.travel,
        onset=motion.onset,
        hidden=motion.hidden,
        track=track.centre,
        visible=track.visible,
    )


def _motions(clip: Field, tracks: list[Track]) -> tuple[CameraMotion, list[ObjectMotion]]:
    """Camera and object motions. A faint camera over objects that move all the same was a shadow or flicker."""
    camera = camera_motion(clip, tracks)
    motions = [object_motion(track, camera) for track in tracks]
    if camera.name != "static" and camera.gain < FAINT and any(m.name not in ("still", "spin") for m in motions):
        camera = CameraMotion("static", 0.0, camera.gain)
        motions = [object_motion(track, camera) for track in tracks]
    return camera, motions


def _behind_another(track: Track, tracks: list[Track]) -> bool:
    """True where the middle of the hidden stretch lies within another object's outline."""
    total = len(track.visible)
    shown = np.flatnonzero(track.visible)
    missing = np.setdiff1d(np.arange(shown[0], shown[-1] + 1), shown)
    t = int(np.median(missing)) if len(missing) else int(shown[0] + track.area[shown[0] : shown[-1] + 1].argmin())
    x = np.interp(t, shown, track.centre[shown, 0])
    for other in tracks:
        at = np.flatnonzero(np.isfinite(other.box[:, 0]))
        if other is track or not len(at) or total != len(other.visible):
            continue
        left, right = (np.interp(t, at, other.box[at, side]) for side in (0, 1))
        if left < x < right:
            return True
    return False


def _speed(span: float) -> str:
    return "slow" if span < SPEED_SPLITS[0] else "fast" if span > SPEED_SPLITS[1] else ""


def _screen_seen(clip: Field, track: Track) -> bool:
    """True where the picture, at the height of the object, has a flat patch between two upright edges mid-path."""
    height, width = clip.labels.shape[1:]
    half = min(height, width) / 2
    shown = np.flatnonzero(track.visible)
    gap = np.setdiff1d(np.arange(shown[0], shown[-1] + 1), shown)
    where = gap if len(gap) else np.array([int(track.area[shown[0] : shown[-1] + 1].argmin()) + shown[0]])
    picture = ndimage.gaussian_filter(np.median(clip.frames[where], 0).mean(-1), (1, 0.6))
    bottom, top = np.nanmedian(track.box[:, 2]), np.nanmedian(track.box[:, 3])
    low = min(height, max(8, round(height / 2 - bottom * half)))
    rows = slice(max(0, min(round(height / 2 - top * half), low - 8)), low)
    steps = ndimage.correlate1d(picture, np.array([1, 1, 1, 0, -1, -1, -1]) / 3, axis=1, mode="nearest")[rows]
    bands = [np.abs(steps[i : i + 6].mean(0)) for i in range(0, max(1, len(steps) - 5), 3)]
    edges = np.mean(bands, axis=0)
    middle = round(float(np.interp(where.mean(), shown, track.centre[shown, 0])) * half + width / 2)
    left, inner, right = (
        edges[max(0, middle - 17) : max(1, middle - 4)],
        edges[middle - 4 : middle + 5],
        edges[middle + 4 : middle + 17],
    )
    if not (left.size and inner.size and right.size):
        return False
    return bool(0.5 * (left.max() + right.max()) > SCREEN_EDGE * (inner.max() + 0.008))


def judge(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Whether each attribute of `scene` shows in the video; `all` joins every attribute but size and speed.

    Objects are matched to things so that as much as possible agrees, colour before motion before shape, so one wrong
    attribute does not spoil the others.
    """
    pairs = _match(reading, scene)
    matched = len(pairs) == scene.count
    objects, things = [o for o, _ in pairs], [t for _, t in pairs]
    motions = [o.motion == t.motion for o, t in pairs]
    if scene.event:
        motions = _event_motions(objects, things, scene)
    verdict = {
        "colour": sorted(o.colour for o in reading.objects) == sorted(t.colour for t in scene.things)
        if reading.count == scene.count
        else {o.colour for o in reading.objects} == {t.colour for t in scene.things},
        "shape": matched and all(o.shape == t.shape for o, t in pairs),
        "count": reading.count == scene.count,
        "motion": matched and all(motions),
        "camera": reading.camera == scene.camera,
        "relation": matched and _relation(reading, objects, things, scene),
        "size": matched and all(o.size == t.size for o, t in pairs),
        "speed": matched and (bool(scene.event) or all(o.speed == t.speed for o, t in pairs if t.speed)),
    }
    return verdict | {"all": all(verdict[name] for name in REQUIRED)}


def _match(reading: Reading, scene: Scene) -> list[tuple[ObjectReading, Thing]]:
    """Best one-to-one matching, in the scene's order; shorter than the scene where objects are missing."""
    if not reading.objects:
        return []
    order = sorted(scene.things, key=lambda thing: thing.x) if scene.group else list(scene.things)
    gain = np.array(
        [
            [
                8.0 * (o.colour == t.colour) + 2.0 * (o.motion == t.motion) + (o.shape == t.shape)
                for o in reading.objects
            ]
            for t in order
        ]
    )
    rows, columns = linear_sum_assignment(-gain)
    return [(reading.objects[c], order[r]) for r, c in zip(rows, columns, strict=True)]


def _event_motions(objects: list[ObjectReading], things: list[Thing], scene: Scene) -> list[bool]:
    if scene.event == "hide":
        return [o.motion == t.motion for o, t in zip(objects, things, strict=True)]
    if len(objects) < 2:
        return [False]
    sign = 1 if things[0].motion == "right" else -1
    first, second = objects[0], objects[1]
    struck = first.track[:, 0][np.isfinite(first.track[:, 0])]
    # The one that strikes may rebound, so its longest way in its direction counts; the other must be driven on.
    forward = max(sign * (struck - struck[0])) if len(struck) else 0.0
    return [bool(forward > 0.06), sign * second.travel[0] > 0.1 and second.motion == things[0].motion]


def _relation(reading: Reading, objects: list[ObjectReading], things: list[Thing], scene: Scene) -> bool:
    """Order from left to right among resting things; who strikes whom; hidden behind a screen, or never hidden."""
    if scene.event == "hide":
        return objects[0].hidden >= HIDDEN and reading.screen
    if reading.screen:
        return False
    if scene.event == "collide":
        return len(objects) == 2 and objects[0].onset < objects[1].onset
    if scene.count > 1 and not scene.group and all(t.motion == "still" for t in things):
        places = [o.place for o, _ in sorted(zip(objects, things, strict=True), key=lambda pair: pair[1].x)]
        return all(a < b for a, b in itertools.pairwise(places))
    return True
