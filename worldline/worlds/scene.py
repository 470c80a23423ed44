"""What a world clip shows: frozen scene descriptions, their sampling, and the held-out compositional split."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SHAPES = ("ball", "cube", "cylinder", "cone")
COLOURS: dict[str, tuple[float, float, float]] = {  # sRGB in 0..1, far apart in hue so that a reader can tell them
    "red": (0.86, 0.12, 0.11),
    "orange": (0.97, 0.52, 0.06),
    "yellow": (0.96, 0.86, 0.12),
    "green": (0.13, 0.66, 0.20),
    "cyan": (0.10, 0.78, 0.82),
    "blue": (0.12, 0.26, 0.86),
    "purple": (0.52, 0.16, 0.74),
    "pink": (0.98, 0.48, 0.74),
}
SIZES = {"small": 0.46, "large": 0.70}  # half the height, in world units
TRAVELS = ("left", "right", "toward", "away")  # motions along the floor
MOTIONS = ("still", *TRAVELS, "fall", "rise", "bounce", "jump", "spin")
SPEEDS = {"slow": 0.95, "": 1.55, "fast": 2.3}  # distance covered in one clip, world units
EVENTS = ("", "collide", "hide")
PUSHES = {  # (right, toward the viewer): what drives a thing about the floor, a letter of `Scene.pushes` each
    "none": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "toward": (0.0, 1.0),
    "away": (0.0, -1.0),
}
PUSH_RATE = 16  # pushes a second
CAMERAS = ("static", "pan left", "pan right", "zoom in", "zoom out", "orbit left", "orbit right")
FLOORS = ("plain", "checkered", "striped", "tiled")
FLOOR_COLOURS = {
    "grey": (0.56, 0.56, 0.57),
    "white": (0.82, 0.82, 0.82),
    "beige": (0.74, 0.69, 0.60),
    "dark": (0.33, 0.33, 0.35),
}
SKIES = {"pale": (0.80, 0.83, 0.87), "dark": (0.22, 0.23, 0.27), "dusk": (0.66, 0.58, 0.56)}

# Every colour once and every shape twice: no colour and no shape is unknown, only their pairing is.
HELDOUT_PAIRS = frozenset(
    {
        ("red", "cylinder"),
        ("orange", "cone"),
        ("yellow", "cube"),
        ("green", "ball"),
        ("cyan", "cylinder"),
        ("blue", "cone"),
        ("purple", "cube"),
        ("pink", "ball"),
    }
)
HELDOUT_MOTIONS = frozenset({("bounce", "cone"), ("jump", "cylinder")})


@dataclass(frozen=True)
class Thing:
    """One object: what it is, what it does, and where its path begins (world units; x right, y up, z to the viewer)."""

    shape: str
    colour: str
    size: str
    motion: str = "still"
    speed: str = ""
    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0

    @property
    def radius(self) -> float:
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """A clip's ground truth. `things[0]` acts; `event` relates things; the camera moves only over resting things."""

    things: tuple[Thing, ...]
    event: str = ""
    camera: str = "static"
    floor: str = "plain"
    floor_colour: str = "grey"
    sky: str = "pale"
    light: float = 0.6  # azimuth of the light, radians
    group: bool = False  # the things are equal and act together ("three red balls ...")
    pushes: str = ""  # what drives the first thing, `PUSH_RATE` times a second: first letters of `PUSHES`

    @property
    def count(self) -> int:
        return len(self.things)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Scene:
        fields = json.loads(text)
        fields["things"] = tuple(Thing(**thing) for thing in fields["things"])
        return Scene(**fields)


def is_heldout(scene: Scene) -> bool:
    """True where the scene shows a composition that training never does (pairing, motion x shape, groups of four)."""
    if scene.group and scene.count == 4:
        return True
    if scene.event == "hide" and scene.things[0].shape == "ball":
        return True
    return any(
        (thing.colour, thing.shape) in HELDOUT_PAIRS or (thing.motion, thing.shape) in HELDOUT_MOTIONS
        for thing in scene.things
    )


def sample_scene(rng: np.random.Generator, split: str = "train", kind: str | None = None) -> Scene:
    """Draw a scene. `split`: "train" (no held-out composition), "heldout" (always one) or "any"; `kind`: of `KINDS`.

    Rejection never gives up, so the split is strict. Raises ValueError for an unknown split or kind.
    """
    if split not in ("train", "heldout", "any"):
        raise ValueError(f"split must be train, heldout or any, not {split!r}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    while True:
        chosen = kind or str(rng.choice(list(KINDS), p=KIND_SHARES))
        scene = KINDS[chosen](rng)
        if not _clear(scene) or (split != "any" and is_heldout(scene) != (split == "heldout")):
            continue
        return scene


def sample_pushed(rng: np.random.Generator, split: str = "train", seconds: float = 20.0) -> Scene:
    """A lone thing that is pushed about the floor, each push held for 3 to 10 beats; `split` as in `sample_scene`."""
    scene = sample_scene(rng, split, "single")
    x, z = float(rng.uniform(-0.9, 0.9)), float(rng.uniform(-0.8, 0.4))
    thing = dataclasses.replace(scene.things[0], motion="pushed", speed="", x=x, z=z)
    pushes = ""
    while len(pushes) < seconds * PUSH_RATE:
        pushes += str(rng.choice([name[0] for name in PUSHES])) * int(rng.integers(3, 11))
    return dataclasses.replace(scene, things=(thing,), pushes=pushes[: math.ceil(seconds * PUSH_RATE)])


def pushes_of(letters: str) -> np.ndarray:
    """float32 (n, 2): the pushes of `Scene.pushes` as (right, toward)."""
    vectors = {name[0]: vector for name, vector in PUSHES.items()}
    return np.array([vectors[letter] for letter in letters], np.float32).reshape(-1, 2)


def _pick(rng: np.random.Generator, options: Iterable[str]) -> str:
    return str(rng.choice(list(options)))


def _thing(rng: np.random.Generator, motion: str, taken: tuple[str, ...] = (), **where: float) -> Thing:
    shape = "cube" if motion == "spin" else _pick(rng, SHAPES)  # the other shapes look the same from every side
    colour = _pick(rng, [name for name in COLOURS if name not in taken])
    speed = _pick(rng, SPEEDS) if motion in TRAVELS else ""
    return Thing(shape, colour, _pick(rng, SIZES), motion, speed, yaw=float(rng.uniform(0, math.pi / 2)), **where)


def _setting(rng: np.random.Generator, moving_camera: bool = False) -> dict:
    camera = _pick(rng, CAMERAS[1:]) if moving_camera else "static"
    # A plain floor hides camera motion, so a moving camera always gets a pattern.
    floor = _pick(rng, FLOORS[1:] if moving_camera else FLOORS)
    light = float(rng.uniform(0.25, 2.9))
    return dict(camera=camera, floor=floor, floor_colour=_pick(rng, FLOOR_COLOURS), sky=_pick(rng, SKIES), light=light)


def _place(rng: np.random.Generator, thing: Thing) -> Thing:
    """Start so that the path is centred near the middle of the view."""
    span = SPEEDS[thing.speed]
    shift_x, shift_z = float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.5, 0.4))
    match thing.motion:
        case "left" | "right":
            sign = 1 if thing.motion == "right" else -1
            return dataclasses.replace(thing, x=-sign * span / 2 + shift_x, z=shift_z)
        case "toward" | "away":
            sign = 1 if thing.motion == "toward" else -1
            return dataclasses.replace(thing, x=shift_x * 2, z=-sign * span * DEPTH_GAIN / 2 - 0.3)
        case _:
            return dataclasses.replace(thing, x=shift_x * 2, z=shift_z)


DEPTH_GAIN = 1.3  # depth is foreshortened: the same travel must be longer to be seen


def _single(rng: np.random.Generator) -> Scene:
    motion = str(rng.choice(MOTIONS, p=[0.04, 0.14, 0.14, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.08]))
    return Scene((_place(rng, _thing(rng, motion)),), **_setting(rng))


def _camera(rng: np.random.Generator) -> Scene:
    first = dataclasses.replace(_place(rng, _thing(rng, "still")), x=float(rng.uniform(-0.5, 0.5)))
    return Scene((first,), **_setting(rng, moving_camera=True))


def _hide(rng: np.random.Generator) -> Scene:
    sign = int(rng.choice((-1, 1)))
    thing = _thing(rng, "right" if sign > 0 else "left")
    thing = dataclasses.replace(thing, speed="fast", x=-sign * 1.5, z=-0.7)
    return Scene((thing,), event="hide", **_setting(rng))


def _pair(rng: np.random.Generator) -> Scene:
    """The first acts, the second mostly rests; at times both act."""
    first = _place(
        rng,
        _thing(rng, str(rng.choice(MOTIONS, p=[0.22, 0.15, 0.15, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.0]))),
    )
    second_motion = "still" if rng.random() < 0.7 else _pick(rng, MOTIONS[1:-1])
    second = _place(rng, _thing(rng, second_motion, (first.colour,)))
    side = int(rng.choice((-1, 1)))
    if first.motion in ("left", "right"):
        second = dataclasses.replace(second, x=second.x + float(rng.uniform(-0.8, 0.8)), z=first.z - side * 1.3)
    else:
        first = dataclasses.replace(first, x=first.x * 0.4 - side * 0.8)
        second = dataclasses.replace(second, x=second.x * 0.4 + side * 0.8)
    return Scene((first, second), **_setting(rng))


def _collide(rng: np.random.Generator) -> Scene:
    sign = int(rng.choice((-1, 1)))
    first = _thing(rng, "right" if sign > 0 else "left")
    second = _thing(rng, "still", (first.colour,))
    z = float(rng.uniform(-0.4, 0.3))
    first = dataclasses.replace(first, speed="fast", x=-sign * float(rng.uniform(1.5, 1.65)), z=z)
    second = dataclasses.replace(second, x=sign * float(rng.uniform(0.0, 0.4)), z=z)
    return Scene((first, second), event="collide", **_setting(rng))


def _three(rng: np.random.Generator) -> Scene:
    """The first acts beside or before two resting things."""
    first = _place(
        rng,
        dataclasses.replace(
            _thing(rng, str(rng.choice(("still", "left", "right", "fall", "bounce", "jump", "rise")))),
            size="small",
        ),
    )
    second = dataclasses.replace(_thing(rng, "still", (first.colour,)), size="small")
    third = dataclasses.replace(_thing(rng, "still", (first.colour, second.colour)), size="small")
    side = int(rng.choice((-1, 1)))
    if first.motion in ("left", "right"):
        first = dataclasses.replace(first, z=0.9)
        spots = (-0.75 * side, 0.75 * side)
    else:
        slots = rng.permutation(3)
        first = dataclasses.replace(first, x=1.15 * float(slots[0] - 1))
        spots = (1.15 * float(slots[1] - 1), 1.15 * float(slots[2] - 1))
    jitter = rng.uniform(-0.12, 0.12, 4)
    second = dataclasses.replace(second, x=spots[0] + float(jitter[0]), z=-0.6 + float(jitter[1]))
    third = dataclasses.replace(third, x=spots[1] + float(jitter[2]), z=-0.6 + float(jitter[3]))
    return Scene((first, second, third), **_setting(rng))


def _group(rng: np.random.Generator) -> Scene:
    """Two to four equal things in a row that act together."""
    count = int(rng.integers(2, 5))
    motion = str(rng.choice(("still", "left", "right", "fall", "rise", "bounce", "jump")))
    model = dataclasses.replace(_thing(rng, motion), size="small", speed="slow" if motion in TRAVELS else "")
    model = _place(rng, model)
    gap = {2: 1.3, 3: 1.1, 4: 0.98}[count]
    centre = 0.6 * model.x if motion in ("left", "right") else 0.0
    xs = [centre + gap * (i - (count - 1) / 2) for i in range(count)]
    z = -0.2 if count < 4 else -0.8
    return Scene(tuple(dataclasses.replace(model, x=x, z=z) for x in xs), group=True, **_setting(rng))


KINDS = {
    "single": _single,
    "camera": _camera,
    "hide": _hide,
    "pair": _pair,
    "collide": _collide,
    "three": _three,
    "group": _group,
}
KIND_SHARES = (0.42, 0.08, 0.06, 0.20, 0.06, 0.10, 0.08)


def _clear(scene: Scene) -> bool:
    """True where every captioned thing can be seen: inside the view, and not mostly behind another at both ends."""
    from worldline.worlds.physics import camera_at, project, simulate

    path = simulate(scene, frames=5, fps=4.0).positions  # (5, n, 3): a second, sparsely
    for step, duration in ((0, 0.0), (2, 0.5), (4, 1.0)):
        spots = project(camera_at(scene.camera, duration), path[step], [thing.radius for thing in scene.things])
        for i, (u, v, radius) in enumerate(spots):
            limit = 1.05 if step != 2 else 0.95
            if abs(u) + 0.5 * radius > limit or abs(v) + 0.6 * radius > 1.0:
                return False
            for u2, v2, radius2 in spots[i + 1 :]:
                reach = radius + radius2
                near = math.hypot(u - u2, v - v2)
                if scene.event != "collide" and step != 2 and near < 0.85 * reach:
                    return False
    return True
