"""Do edits hold? Every verb on held-out worlds: is what was known untouched, do joins show, is the thing the same?

Beside the model stand two ceilings, the true world and that through the autoencoder, and a floor, another world's
frames, each with what is known of the clip put back.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldline.errors import UserError
from worldline.eval.continuity import colour_drift, join_ratio, loop_ratio
from worldline.eval.report import Failure, Report, Verdict
from worldline.eval.runner import GROUND_TRUTH, RECONSTRUCTED, Reconstruct, prepare_folder
from worldline.eval.worlds import MAX_FAILURES, Case
from worldline.media.read import Video
from worldline.worlds import verify
from worldline.worlds.captions import caption
from worldline.worlds.render import render
from worldline.worlds.scene import COLOURS, Scene, sample_scene

PURPOSE = 0x76657262  # keeps these scenes apart from those of other draws with equal seeds
FLOOR = "floor: another's frames"
SMOOTH = 1.2  # times the median distance of neighbouring frames: a step that does not show
DRIFT = 3.0  # 8-bit levels that the usual colour may wander
SECOND = 16  # frames
FPS = Fraction(SECOND)
SMALLEST = 32  # pixels of a side: a latent cell and more on either side of a clip


@dataclass(frozen=True)
class Trial:
    """One edit of one world: the verb's arguments after the pipeline and its settings, and what a perfect answer is.

    `truth` uint8 (T, H, W, 3), of which `known` (bool, broadcasts to T, H, W) must come back; `joins` as in
    `continuity.join_ratio`; `scene` is what the answer shows, `checks` what is judged (`CHECKS` and `FIGURES`).
    """

    arguments: Sequence[Any]
    truth: np.ndarray
    known: np.ndarray
    scene: Scene
    checks: Sequence[str]
    joins: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def kept(self, frames: np.ndarray) -> np.ndarray:
        """Frames with what is known put back, where they are of the right shape."""
        if frames.shape != self.truth.shape:
            return frames
        return np.where(self.known[..., None], self.truth, frames)


# (verb, trial, seed) -> video uint8 (T, H, W, 3) of the trial's shape
Ask = Callable[[str, Trial, int], np.ndarray]

CHECKS: dict[str, Callable[[np.ndarray, Trial], bool]] = {
    "untouched": lambda frames, trial: np.array_equal(frames, trial.kept(frames)),
    "identity": lambda frames, trial: same_thing(frames, trial.scene),
    "motion": lambda frames, trial: obeys(frames, trial.scene, "motion", "camera"),
    "prompt": lambda frames, trial: obeys(frames, trial.scene),
}
FIGURES: dict[str, Callable[[np.ndarray, Trial], float]] = {  # right up to their limits
    "join": lambda frames, trial: join_ratio(frames, trial.joins),
    "loop": lambda frames, trial: loop_ratio(frames),
    "drift": lambda frames, trial: colour_drift(frames, trial.joins),
}
LIMITS = {"join": SMOOTH, "loop": SMOOTH, "drift": DRIFT}
UNITS = {"seconds": "s", "join": "x median step", "loop": "x median step", "drift": "levels"}


def same_thing(frames: np.ndarray, scene: Scene) -> bool:
    """The first and the last second show one thing of the scene's colour and shape."""
    thing = scene.things[0]
    ends = (verify.read(part, SECOND) for part in (frames[: SECOND + 1], frames[-SECOND - 1 :]))
    return all([(o.colour, o.shape) for o in reading.objects] == [(thing.colour, thing.shape)] for reading in ends)


def obeys(frames: np.ndarray, scene: Scene, *attributes: str) -> bool:
    """The verifier finds these attributes of the scene, or all of them."""
    verdict = verify.judge(verify.read(frames, SECOND), scene)
    return all(verdict[name] for name in attributes or ("all",))


# ---- the trials: known worlds, edited ----------------------------------------------------------------


def animate(case: Case, size: tuple[int, int]) -> Trial:
    truth = render(case.scene, SECOND + 1, *size).frames
    checks = ("untouched", "join", "identity", "motion")
    known = _stretches(truth, (0, 1))
    return Trial((truth[0], case.prompt), truth, known, case.scene, checks, (1,), _shape(truth))


def extend(case: Case, size: tuple[int, int]) -> Trial:
    """Half a second more on either side."""
    truth = render(case.scene, 2 * SECOND + 1, *size).frames
    arguments = (Video(truth[8:25], FPS), case.prompt, 0.5, 0.5)
    checks = ("untouched", "join", "drift", "identity")
    return Trial(arguments, truth, _stretches(truth, (8, 25)), case.scene, checks, (8, 25))


def loop(case: Case, size: tuple[int, int]) -> Trial:
    """The way back takes as long as the way there, so that it can be as smooth."""
    clip = render(case.scene, SECOND + 2, *size).frames
    truth = np.concatenate([clip, clip[-2:0:-1]])
    arguments = (Video(clip, FPS), case.prompt, 1.0)
    checks = ("untouched", "join", "loop", "drift", "identity")
    return Trial(arguments, truth, _stretches(truth, (0, len(clip))), case.scene, checks, (len(clip),))


def interpolate(case: Case, size: tuple[int, int]) -> Trial:
    truth = render(case.scene, SECOND + 2, *size).frames
    known = _stretches(truth, (0, 1), (SECOND + 1, SECOND + 2))
    checks = ("untouched", "join", "identity", "motion")
    arguments = (truth[0], truth[-1], case.prompt)
    return Trial(arguments, truth, known, case.scene, checks, (1, SECOND + 1), _shape(truth))


def blend(case: Case, size: tuple[int, int]) -> Trial:
    """Two clips of one motion, of which the second is in another colour: the colour changes over half a second."""
    one, other = (render(scene, 26, *size).frames for scene in (case.scene, recoloured(case.scene)))
    share = np.clip((np.arange(26) - 8) / 9, 0, 1)[:, None, None, None]
    truth = ((1 - share) * one + share * other).round().astype(np.uint8)
    arguments = (Video(one[:17], FPS), Video(other[9:], FPS), case.prompt, 0.5)
    return Trial(arguments, truth, _stretches(truth, (0, 9), (17, 26)), case.scene, ("untouched", "join"), (9, 17))


def recut(case: Case, size: tuple[int, int]) -> Trial:
    """Two frames are cut out; the half second around the cut goes on a little faster."""
    whole = render(case.scene, 35, *size).frames
    joined = np.round(np.linspace(12, 23, 10)[1:-1]).astype(int)
    truth = np.concatenate([whole[:13], whole[joined], whole[23:]])
    arguments = (Video(whole, FPS), [(0, 17 / 16), (19 / 16, 35 / 16)], case.prompt, 0.5)
    checks = ("untouched", "join", "drift", "identity")
    return Trial(arguments, truth, _stretches(truth, (0, 13), (21, 33)), case.scene, checks, (13, 21))


def remix(case: Case, size: tuple[int, int]) -> Trial:
    """The same in another colour."""
    clip, scene = render(case.scene, SECOND + 1, *size).frames, recoloured(case.scene)
    truth = render(scene, SECOND + 1, *size).frames
    arguments = (Video(clip, FPS), caption(scene, np.random.default_rng(0), "short"), 0.8)
    return Trial(arguments, truth, _stretches(truth), scene, ("prompt",))


def inpaint(case: Case, size: tuple[int, int]) -> Trial:
    """A quarter of the picture, in its middle, is painted anew."""
    truth, width = render(case.scene, SECOND + 1, *size).frames, size[1]
    mask = np.zeros(size, bool)
    mask[:, width * 3 // 8 : width * 5 // 8] = True
    return Trial((Video(truth, FPS), mask, case.prompt), truth, ~mask[None], case.scene, ("untouched", "prompt"))


def outpaint(case: Case, size: tuple[int, int]) -> Trial:
    """From the middle half of the picture to all of it, so that what moves leaves the clip."""
    truth, (height, width) = render(case.scene, SECOND + 1, *size).frames, size
    side = width // 4 // 8 * 8
    known = np.zeros(size, bool)
    known[:, side : width - side] = True
    arguments = (Video(truth[:, :, side : width - side], FPS), width, height, case.prompt)
    return Trial(arguments, truth, known[None], case.scene, ("untouched", "prompt"))


TRIALS: dict[str, Callable[[Case, tuple[int, int]], Trial]] = {
    trial.__name__: trial for trial in (animate, extend, loop, interpolate, blend, recut, remix, inpaint, outpaint)
}


def recoloured(scene: Scene) -> Scene:
    """The scene with its thing in another colour."""
    thing = scene.things[0]
    colours = list(COLOURS)
    other = colours[(colours.index(thing.colour) + 3) % len(colours)]
    return replace(scene, things=(replace(thing, colour=other), *scene.things[1:]))


def _shape(frames: np.ndarray) -> dict[str, Any]:
    """The settings that ask for a video of this shape and rate."""
    return {**dict(zip(("frames", "height", "width"), frames.shape, strict=False)), "fps": FPS}


def _stretches(frames: np.ndarray, *spans: tuple[int, int]) -> np.ndarray:
    """(T, 1, 1) bool, true from the first of each span up to its second."""
    known = np.zeros((len(frames), 1, 1), bool)
    for first, stop in spans:
        known[first:stop] = True
    return known


# ---- the run -----------------------------------------------------------------------------------------


def sample_cases(n: int, seed: int) -> list[Case]:
    """`n` lone things in motion, alternately of seen and of held-out compositions; a pure function of its arguments."""
    if n < 2:
        raise UserError(f"--n: {n} worlds cannot cover seen and unseen; use 2 or more")
    cases = []
    for index in range(n):
        rng = np.random.default_rng([PURPOSE, seed, index])
        scene = sample_scene(rng, "any" if index % 2 else "train", "single")
        cases.append(Case(caption(scene, rng, "short"), scene))
    return cases


@dataclass
class Results:
    """A report of every check, and `figures`: set -> name -> its values."""

    report: Report
    figures: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def table(self) -> str:
        """Rates, then the medians of the figures with their worst."""
        lines = [self.report.table(), ""]
        for name, values in self.figures.items():
            shown = [_figure(figure, found) for figure, found in values.items()]
            if shown:
                lines.append(f"{name:<{max(map(len, self.figures))}}  " + "; ".join(shown))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {**self.report.as_dict(), "figures": {name: dict(values) for name, values in self.figures.items()}}


def _figure(name: str, values: Sequence[float]) -> str:
    return f"{name} {np.median(values):.2f} {UNITS[name]} (worst {max(values):.2f})"


def check(verbs: Sequence[str], size: tuple[int, int]) -> None:
    """Raises UserError for an unknown verb, and for a size (height, width) with no room beside a clip."""
    for verb in verbs:
        if verb not in TRIALS:
            raise UserError(f"--verbs {verb[:40]!r}: unknown; one of {', '.join(TRIALS)}")
    if min(size) < SMALLEST:
        nearest = "x".join(str(max(SMALLEST, side)) for side in size[::-1])
        raise UserError(
            f"--size {size[1]}x{size[0]}: too small to edit a part of; the nearest valid value is {nearest}"
        )


def run_verbs(
    ask: Ask,
    n: int = 16,
    seed: int = 0,
    verbs: Sequence[str] = tuple(TRIALS),
    size: tuple[int, int] = (64, 64),
    reconstruct: Reconstruct | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Asks for every verb on `n` worlds of `size` (height, width); world i is edited with seed `seed + i`.

    Sets are a verb's name, and that with its ceilings and its floor. With `out` the report is saved there (see
    Report.save). Raises UserError for what `check` refuses and for an unusable `out`.
    """
    check(verbs, size)
    if out is not None:
        prepare_folder(out)
    cases, sets, failures = sample_cases(n, seed), defaultdict[str, list[Verdict]](list), list[Failure]()
    results = Results(Report(sets, failures))
    for row, verb in enumerate(verbs):
        trials = [TRIALS[verb](case, size) for case in cases]
        answers, seconds = [], results.figures[verb]["seconds"]
        for index, trial in enumerate(trials):
            began = time.perf_counter()
            answers.append(ask(verb, trial, seed + index))
            seconds.append(time.perf_counter() - began)
            if progress:
                progress(row * n + index + 1, len(verbs) * n)
        others = {GROUND_TRUTH: [trial.truth for trial in trials]}
        if reconstruct is not None:
            others[RECONSTRUCTED] = [trial.kept(reconstruct(trial.truth)) for trial in trials]
        others[FLOOR] = [trial.kept(other) for trial, other in zip(trials, answers[1:] + answers[:1], strict=True)]
        for name, videos in {"": answers, **others}.items():
            label = f"{verb}, {name}" if name else verb
            for case, trial, frames in zip(cases, trials, videos, strict=True):
                right, measured = judged(frames, trial)
                verdict = Verdict(case.prompt, case.seen, case.scene.count, right)
                sets[label].append(verdict)
                for figure, value in measured.items():
                    results.figures[label][figure].append(value)
                if not name and not verdict.obeyed and len(failures) < MAX_FAILURES:
                    failures.append(Failure(f"{verb}: {case.prompt}", verdict.wrong, frames))
    if out is not None:
        results.report.save(out)
    return results


def judged(frames: np.ndarray, trial: Trial) -> tuple[dict[str, bool], dict[str, float]]:
    """Verdict on every check of a trial, and its figures, of an answer uint8 (T, H, W, 3); one of another shape has no
    figures and fails everything."""
    if frames.shape != trial.truth.shape:
        return dict.fromkeys(trial.checks, False), {}
    figures = {name: FIGURES[name](frames, trial) for name in trial.checks if name in FIGURES}
    right = {name: figures[name] <= LIMITS[name] if name in figures else bool(CHECKS[name](frames, trial))
             for name in trial.checks}  # fmt: skip
    return right, figures
