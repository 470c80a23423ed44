"""Does a driven world go where it must? Rollouts of pushed things against the simulator, far beyond a trained clip.

Beside the model stand the true world through the autoencoder (ceiling), the same world under other pushes, and the
first frame held still (floors).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from worldline.errors import UserError
from worldline.eval.report import Rate
from worldline.eval.runner import RECONSTRUCTED, Reconstruct
from worldline.eval.worlds import MODEL, Case
from worldline.media.preview import contact_sheet
from worldline.media.write import write_bytes, write_image
from worldline.worlds import verify
from worldline.worlds.captions import caption
from worldline.worlds.render import render
from worldline.worlds.scene import PUSH_RATE, PUSHES, Scene, sample_pushed
from worldline.worlds.tracks import find_tracks, working_size
from worldline.worlds.verify_nets import shipped_table

PURPOSE = 0x726F6C6C  # keeps these scenes apart from those of other draws with equal seeds
OTHER, STILL = "floor: other pushes", "floor: first frame"
LENGTHS = (17, 65, 257)  # frames: a trained clip, four and sixteen of them
LAST = 9  # frames before each length in which the thing is looked for
NEAR = 0.15  # half shorter sides: nearer than half a small thing's width

# (first frame uint8 (H, W, 3), prompt, pushes as (direction, seconds), seed) -> video uint8 (T, H, W, 3)
Ask = Callable[[np.ndarray, str, list[tuple[str, float]], int], np.ndarray]


def sample_cases(n: int, seed: int, frames: int = max(LENGTHS)) -> list[Case]:
    """`n` things to push about, alternately of seen and of held-out compositions; a pure function of its arguments."""
    if n < 2:
        raise UserError(f"--n: {n} worlds cannot cover seen and unseen; use 2 or more")
    cases = []
    for index in range(n):
        rng = np.random.default_rng([PURPOSE, seed, index])
        scene = sample_pushed(rng, "any" if index % 2 else "train", seconds=frames / PUSH_RATE)
        cases.append(Case(caption(scene, rng, "short"), scene))
    return cases


@dataclass
class Results:
    """`errors`: set -> length -> a world each, the mean distance of the thing from where it must be in half shorter
    sides, infinite where it is not seen; `same`: set -> length -> whether one thing of its colour and shape is seen"""

    errors: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    same: dict[str, dict[int, list[bool]]] = field(default_factory=dict)

    def near(self, name: str, length: int) -> Rate:
        """Things that are within `NEAR` of where they must be."""
        errors = self.errors[name][length]
        return Rate(sum(error < NEAR for error in errors), len(errors))

    def table(self) -> str:
        """A row per set: median error, share within `NEAR` and identity, at every length."""
        lengths = list(next(iter(self.errors.values())))
        width = max(map(len, self.errors))
        lines = [" " * width + "".join(f"  {f'{length} frames':<34}" for length in lengths)]
        for name, errors in self.errors.items():
            cells = (
                f"error {np.median(errors[length]):.3f}  near {self.near(name, length)}  "
                f"same {100 * np.mean(self.same[name][length]):.0f}"
                for length in lengths
            )
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:<34}" for cell in cells))
        about = f"median distance in half shorter sides; percent within {NEAR} [95 % Wilson interval]; percent in which"
        return "\n".join([*lines, f"{about} one thing of its colour and shape is seen"])

    def as_dict(self) -> dict[str, Any]:
        return {"errors": self.errors, "same": self.same}


def run_rollouts(
    ask: Ask,
    n: int = 16,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    size: tuple[int, int] = (64, 64),
    reconstruct: Reconstruct | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Drives `n` worlds of `size` (height, width) to the longest of `lengths` and looks where the thing is at each.

    World i is drawn with seed `seed + i`. With `out` there is a contact sheet of model and truth, and the JSON.
    """
    longest, results = max(lengths), Results()
    rows: list[np.ndarray] = []
    for index, case in enumerate(sample_cases(n, seed, longest)):
        truth = render(case.scene, longest, *size, fps=PUSH_RATE).frames
        others = {MODEL: ask(truth[0], case.prompt, said(case.scene.pushes[: longest - 1]), seed + index)}
        if reconstruct is not None:
            others[RECONSTRUCTED] = reconstruct(truth)
        elsewhere = render(_with_other_pushes(case, seed + index), longest, *size, fps=PUSH_RATE).frames
        others |= {OTHER: elsewhere, STILL: np.repeat(truth[:1], longest, 0)}
        for length in lengths:
            thing, last = case.scene.things[0], slice(max(0, length - LAST), length)
            right = where(truth[last], thing.colour)
            for name, video in others.items():
                distance = np.linalg.norm(where(video[last], thing.colour) - right, axis=1)
                error = float(np.nanmean(distance)) if np.isfinite(distance).any() else np.inf
                results.errors.setdefault(name, {}).setdefault(length, []).append(error)
                seen = [(o.colour, o.shape) for o in verify.read(video[last], PUSH_RATE).objects]
                results.same.setdefault(name, {}).setdefault(length, []).append(seen == [(thing.colour, thing.shape)])
        if index < 4:
            shown = np.linspace(0, longest - 1, 12).round().astype(int)
            rows += [truth[shown], others[MODEL][shown]]
        if progress:
            progress(index + 1, n)
    if out is not None:
        write_bytes(out / "report.json", json.dumps(results.as_dict(), indent=1).encode())
        write_image(out / "rollouts.png", contact_sheet(rows, ["the world", "the model"] * (len(rows) // 2)))
    return results


def said(letters: str) -> list[tuple[str, float]]:
    """`Scene.pushes` as (direction, seconds)."""
    names = {name[0]: name for name in PUSHES}
    return [(names[letter], len(list(held)) / PUSH_RATE) for letter, held in groupby(letters)]


def where(frames: np.ndarray, colour: str) -> np.ndarray:
    """(T, 2): centre of the one thing of a colour in half shorter sides, NaN where it is not seen or not alone."""
    _, tracks = find_tracks(working_size(frames), shipped_table())
    own = [track for track in tracks if track.colour == colour]
    if len(own) != 1:
        return np.full((len(frames), 2), np.nan)
    return np.where(own[0].visible[:, None], own[0].centre, np.nan)


def _with_other_pushes(case: Case, seed: int) -> Scene:
    """The scene under pushes of another draw."""
    other = sample_pushed(np.random.default_rng([PURPOSE, seed, 1]), seconds=len(case.scene.pushes) / PUSH_RATE)
    return replace(case.scene, pushes=other.pushes)
