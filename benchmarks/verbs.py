"""Every verb on held-out worlds with the shipped model: do joins show, is identity kept, does the prompt hold?

python -m benchmarks.verbs [--n 16] [--sheets docs/images] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldline.eval.continuity import colour_drift, join_ratio, loop_ratio
from worldline.eval.quality import psnr
from worldline.eval.report import Rate
from worldline.eval.worlds import Case, sample_cases
from worldline.generate import edit
from worldline.generate.pipeline import Pipeline, load
from worldline.media.preview import contact_sheet
from worldline.media.read import Video
from worldline.media.write import write_image
from worldline.worlds import verify
from worldline.worlds.captions import caption
from worldline.worlds.render import render
from worldline.worlds.scene import COLOURS, Scene

FPS = Fraction(16)
SECOND = 17  # frames
ROWS = 4  # of a contact sheet


@dataclass
class Tally:
    """What was seen of one verb."""

    seconds: list[float] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    flags: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    clips: list[np.ndarray] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[str]:
        yield f"{np.median(self.seconds):.2f} s"
        for name, values in self.numbers.items():
            yield f"{name} {np.median(values):.2f} (worst {max(values):.2f})"
        for name, held in self.flags.items():
            yield f"{name} {Rate(sum(held), len(held))} %"


def lone_cases(n: int, seed: int) -> list[Case]:
    """Held-out and seen scenes of one thing in turn, which moves and is never hidden."""
    cases = sample_cases(12 * n, seed, "short")
    return [case for case in cases if case.scene.count == 1 and not case.scene.event][:n]


def footage(scene: Scene, frames: int = SECOND) -> Video:
    return Video(render(scene, frames).frames, FPS)


def same_thing(frames: np.ndarray, scene: Scene) -> bool:
    """One object of the scene's colour and shape, at the beginning and at the end."""
    thing = scene.things[0]
    ends = (verify.read(part, float(FPS)) for part in (frames[:SECOND], frames[-SECOND:]))
    return all([(o.colour, o.shape) for o in reading.objects] == [(thing.colour, thing.shape)] for reading in ends)


def obeys(frames: np.ndarray, case: Case, *attributes: str) -> bool:
    verdict = verify.judge(verify.read(frames, float(FPS)), case.scene)
    return all(verdict[name] for name in attributes or ("all",))


def animate(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    first = footage(case.scene).frames[0]
    frames = edit.animate(pipeline, first, case.prompt, seed=seed).frames
    tally.flags["first frame exact"].append(np.array_equal(frames[0], first))
    tally.flags["motion and camera"].append(obeys(frames, case, "motion", "camera"))
    tally.flags["same thing"].append(same_thing(frames, case.scene))
    tally.numbers["step after the picture"].append(join_ratio(frames, [1]))
    return frames


def extend(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    video = footage(case.scene)
    frames = edit.extend(pipeline, video, case.prompt, 0.5, 0.5, seed=seed).frames
    tally.numbers["join"].append(join_ratio(frames, [8, 8 + SECOND]))
    tally.numbers["drift"].append(colour_drift(frames, [8, 8 + SECOND]))
    tally.flags["same thing"].append(same_thing(frames, case.scene))
    return frames


def loop(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    frames = edit.loop(pipeline, footage(case.scene), case.prompt, 0.5, seed=seed).frames
    tally.numbers["last to first"].append(loop_ratio(frames))
    tally.numbers["join"].append(join_ratio(frames, [SECOND]))
    return frames


def interpolate(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    video = footage(case.scene)
    frames = edit.interpolate(pipeline, video.frames[0], video.frames[-1], case.prompt, seed=seed).frames
    tally.numbers["join"].append(join_ratio(frames, [1, len(frames) - 1]))
    tally.flags["motion and camera"].append(obeys(frames[:SECOND], case, "motion", "camera"))
    return frames


def blend(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    thing = case.scene.things[0]
    other = next(colour for colour in COLOURS if colour != thing.colour)
    second = replace(case.scene, things=(replace(thing, colour=other),))
    frames = edit.blend(pipeline, footage(case.scene), footage(second), case.prompt, 0.5, seed=seed).frames
    tally.numbers["join"].append(join_ratio(frames, [9, 17]))
    return frames


def recut(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    video = footage(case.scene, 2 * SECOND - 1)
    frames = edit.recut(pipeline, video, [(0, 0.75), (1.25, 2.0625)], case.prompt, 0.5, seed=seed).frames
    tally.numbers["join"].append(join_ratio(frames, [8, 16]))
    tally.flags["same thing"].append(same_thing(frames, case.scene))
    return frames


def remix(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    thing = case.scene.things[0]
    other = next(colour for colour in COLOURS if colour != thing.colour)
    scene = replace(case.scene, things=(replace(thing, colour=other),))
    prompt = caption(scene, np.random.default_rng(seed), "short")
    frames = edit.remix(pipeline, footage(case.scene), prompt, 0.8, seed=seed).frames
    verdict = verify.judge(verify.read(frames, float(FPS)), scene)
    tally.flags["new colour"].append(verdict["colour"])
    tally.flags["same shape and motion"].append(verdict["shape"] and verdict["motion"])
    return frames


def inpaint(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    video = footage(case.scene)
    mask = np.zeros(video.frames.shape[1:3], bool)
    mask[:, 24:40] = True
    frames = edit.inpaint(pipeline, video, mask, case.prompt, seed=seed).frames
    tally.flags["outside untouched"].append(np.array_equal(frames[:, ~mask], video.frames[:, ~mask]))
    tally.flags["all"].append(obeys(frames, case))
    return frames


def outpaint(pipeline: Pipeline, case: Case, seed: int, tally: Tally) -> np.ndarray:
    frames = edit.outpaint(pipeline, footage(case.scene), 96, 64, case.prompt, seed=seed).frames
    tally.flags["all"].append(obeys(frames, case))
    truth = render(case.scene, SECOND, 64, 96).frames
    tally.numbers["-PSNR to the world, dB"].append(-psnr(frames, truth))
    return frames


VERBS: dict[str, Callable[[Pipeline, Case, int, Tally], np.ndarray]] = {
    "animate": animate,
    "extend": extend,
    "loop": loop,
    "interpolate": interpolate,
    "blend": blend,
    "recut": recut,
    "remix": remix,
    "inpaint": inpaint,
    "outpaint": outpaint,
}


def run(pipeline: Pipeline, n: int, seed: int, verbs: list[str]) -> dict[str, Tally]:
    tallies = {verb: Tally() for verb in verbs}
    for index, case in enumerate(lone_cases(n, seed)):
        for verb in verbs:
            tally, began = tallies[verb], time.perf_counter()
            frames = VERBS[verb](pipeline, case, seed + index, tally)
            tally.seconds.append(time.perf_counter() - began)
            if len(tally.clips) < ROWS:
                tally.clips.append(frames)
                tally.labels.append(case.prompt)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16, help="worlds per verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=None, help="model folder; the shipped model unless given")
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--sheets", default=None, help="folder for a contact sheet per verb")
    parser.add_argument("--json", default=None, help="file for all figures")
    args = parser.parse_args()
    tallies = run(load(args.model), args.n, args.seed, args.verbs.split(","))
    for verb, tally in tallies.items():
        print(f"{verb:12} " + "; ".join(tally.rows()))
        if args.sheets:
            sheet = contact_sheet(tally.clips, tally.labels, scale=1)
            write_image(Path(args.sheets) / f"{verb}.png", sheet)
    if args.json:
        held: dict[str, Any] = {
            verb: {"seconds": t.seconds, **t.numbers, **{k: [bool(x) for x in v] for k, v in t.flags.items()}}
            for verb, t in tallies.items()
        }
        Path(args.json).write_text(json.dumps(held, indent=1))


if __name__ == "__main__":
    main()
