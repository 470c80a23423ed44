"""Does the model simulate its world? Things last, fall and bounce as they must, and stay in the picture.

A verifier like `worlds.verify` for `eval.worlds.evaluate`: `read` looks at a video, `judge` holds it against a scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.errors import UserError
from worldline.eval.physics import gravity, restitution
from worldline.eval.worlds import Case
from worldline.worlds import verify
from worldline.worlds.captions import caption
from worldline.worlds.physics import RESTITUTION
from worldline.worlds.render import render
from worldline.worlds.scene import Scene, sample_scene
from worldline.worlds.tracks import find_tracks, working_size
from worldline.worlds.verify_nets import shipped_table

PURPOSE = 0x73696D75  # keeps these scenes apart from those of other draws with equal seeds
KINDS = ("hide", "collide", "camera", "fall", "bounce", "single")  # of scenes, in turn
GRAVITY_WITHIN = 4 / 3  # factor
RESTITUTION_WITHIN = 0.12
PRESENT = 0.9  # share of the frames in which what is seen must be all there is


@dataclass(frozen=True)
class Look:
    """What a video shows: the reading of the whole and of its ends, and what flies and bounces in it."""

    reading: verify.Reading
    first: verify.Reading
    last: verify.Reading
    gravity: float | None
    restitution: float | None
    steady: float  # share of frames that show as many things as the clip has
    inside: float  # share of the frames of all things in which none touches the picture's edge
    shape: tuple[int, int, int]
    fps: float


def sample_cases(n: int, seed: int, style: str = "short") -> list[Case]:
    """`n` prompts, of each of `KINDS` in turn and half of them held-out; a pure function of its arguments."""
    if n < 2:
        raise UserError(f"--n: {n} scenes cannot cover every kind; use {len(KINDS)} or more")
    cases = []
    for index in range(n):
        rng = np.random.default_rng([PURPOSE, seed, index])
        kind, split = KINDS[index % len(KINDS)], "any" if index % 2 else "train"
        motion = kind if kind in ("fall", "bounce") else None
        while True:
            scene = sample_scene(rng, split, "single" if motion else kind)
            if motion is None or scene.things[0].motion == motion:
                break
        cases.append(Case(caption(scene, rng, style), scene))
    return cases


def read(frames: np.ndarray, fps: float) -> Look:
    """Look at a video uint8 (T, H, W, 3)."""
    third = max(1, len(frames) // 3)
    _, tracks = find_tracks(working_size(frames), shipped_table())
    visible = np.array([track.visible for track in tracks])  # (things, T)
    height, width = frames.shape[1:3]
    edge = 1 - 2 / 64  # a pixel of the picture that the verifier works on
    sides = np.array([-width, width, -height, height]) / min(height, width) * edge
    boxes = np.concatenate([track.box[track.visible] for track in tracks]) if tracks else np.zeros((0, 4))
    outside = (boxes[:, [0, 2]] < sides[[0, 2]]).any(1) | (boxes[:, [1, 3]] > sides[[1, 3]]).any(1)
    return Look(
        reading=verify.read(frames, fps),
        first=verify.read(frames[:third], fps),
        last=verify.read(frames[-third:], fps),
        gravity=gravity(frames, fps),
        restitution=restitution(frames),
        steady=float((visible.sum(0) == len(tracks)).mean()) if tracks else 0.0,
        inside=float(1 - outside.mean()) if len(boxes) else 0.0,
        shape=(len(frames), height, width),
        fps=fps,
    )


def judge(look: Look, scene: Scene) -> dict[str, bool]:
    """The checks that a scene allows; what each asks for:

    | check       | scenes             | holds where                                                             |
    | permanence  | behind a screen    | the thing comes out as it went in, and was hidden                       |
    | collision   | two things         | the one that is struck is driven on                                     |
    | camera      | moving             | the camera moves as said over things that rest                          |
    | gravity     | falling, bouncing  | acceleration / size is the world's within a factor of 4/3               |
    | restitution | bouncing           | sqrt(rebound / fall) is the world's within 0.12                         |
    | identity    | all                | the first and the last third show the scene's colours and shapes        |
    | constancy   | nothing hidden     | in 90 % of the frames as many things are seen as there are              |
    | framing     | all                | in 90 % of the frames things are wholly in the picture                  |
    """
    verdict = verify.judge(look.reading, scene)
    things = sorted((thing.colour, thing.shape) for thing in scene.things)
    ends = [sorted((o.colour, o.shape) for o in reading.objects) for reading in (look.first, look.last)]
    right = {"identity": ends == [things, things], "framing": look.inside >= PRESENT}
    if scene.event == "hide":
        right["permanence"] = all(verdict[name] for name in ("count", "colour", "shape", "motion", "relation"))
    else:
        right["constancy"] = look.reading.count == scene.count and look.steady >= PRESENT
    if scene.event == "collide":
        right["collision"] = all(verdict[name] for name in ("count", "colour", "motion", "relation"))
    if scene.camera != "static":
        right["camera"] = verdict["camera"] and verdict["count"]
    motion = scene.things[0].motion
    if scene.count == 1 and motion in ("fall", "bounce"):
        truth = gravity(render(scene, *look.shape, look.fps).frames, look.fps)
        if truth is not None:
            ratio = (look.gravity or 0.0) / truth
            right["gravity"] = 1 / GRAVITY_WITHIN < ratio < GRAVITY_WITHIN
    if scene.count == 1 and motion == "bounce":
        found = look.restitution
        right["restitution"] = found is not None and abs(found - RESTITUTION["bounce"]) < RESTITUTION_WITHIN
    return right


def shuffled(frames: np.ndarray, seed: int = 0) -> np.ndarray:
    """The frames in another order: what a simulator must never look like."""
    return frames[np.random.default_rng(seed).permutation(len(frames))]
