"""How often is the verifier right? On fresh worlds, clean and damaged, and on prompts that do not fit.

    python -m benchmarks.verify [--n 500] [--seed 0] [--model DIR] [--json out.json]

Rows: every attribute right on clean clips, through blur and noise, through a VAE-like damage, and through the
autoencoder of a model; then how often a clip is refused for a prompt in which one attribute was changed, and for the
prompt of another clip. Half of the clips are held-out compositions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldline.eval.report import Rate
from worldline.generate.load import load
from worldline.worlds.render import render
from worldline.worlds.scene import CAMERAS, COLOURS, SHAPES, Scene, sample_scene
from worldline.worlds.verify import ATTRIBUTES, judge, read
from worldline.worlds.verify_training import blurred, vae_like


def changed(scene: Scene, rng: np.random.Generator) -> dict[str, Scene]:
    """Scenes that differ from `scene` in one attribute, by its name."""

    def other(options: tuple[str, ...], *but: str) -> str:
        return str(rng.choice([option for option in options if option not in but]))

    def every(**fields: str) -> Scene:
        kept = () if scene.group else scene.things[1:]
        changed = scene.things if scene.group else scene.things[:1]
        return dataclasses.replace(scene, things=tuple(dataclasses.replace(t, **fields) for t in changed) + kept)

    first = scene.things[0]
    out = {
        "colour": every(colour=other(tuple(COLOURS), *(t.colour for t in scene.things))),
        "shape": every(shape=other(SHAPES, first.shape)),
        "camera": dataclasses.replace(scene, camera=other(CAMERAS, scene.camera)),
        "motion": every(motion=other(("left", "right", "fall", "rise", "bounce", "jump"), first.motion)),
        "count": dataclasses.replace(scene, things=(*scene.things, scene.things[-1])),
    }
    if scene.event == "hide":
        out["relation"] = dataclasses.replace(scene, event="")
    if scene.event == "collide":
        driven = dataclasses.replace(scene.things[1], motion=first.motion)
        out["relation"] = dataclasses.replace(scene, things=(driven, dataclasses.replace(first, motion="still")))
    return out


def measure(n: int, seed: int, model: str | None) -> dict[str, Rate | dict[str, Rate]]:
    """The rates of the module's docstring: of clips right, by damage, and of wrong prompts refused."""
    pipeline = load(model)
    rng = np.random.default_rng([seed, 0x76])
    damages: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
        "clean": lambda frames, _: frames,
        "blur and noise": blurred,
        "VAE-like": vae_like,
        "through the autoencoder": lambda frames, _: pipeline.codec.reconstruct(frames),
    }
    right: Counter[tuple[str, str]] = Counter()
    refused: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    previous: list[Scene] = []
    for index in tqdm(range(n), unit="clip"):
        scene = sample_scene(rng, "train" if index % 2 == 0 else "heldout")
        frames = render(scene).frames
        readings = {name: read(damage(frames, rng)) for name, damage in damages.items()}
        for name, reading in readings.items():
            right.update((name, attribute) for attribute, ok in judge(reading, scene).items() if ok)
        wrong = [*changed(scene, rng).items(), *(("another clip's", other) for other in previous[-4:])]
        for name, other in wrong:
            asked[name] += 1
            refused[name] += not judge(readings["clean"], other)["all"]
        previous.append(scene)
    columns = ("all", *ATTRIBUTES)
    rates: dict[str, Rate | dict[str, Rate]] = {
        f"right: {name}": {column: Rate(right[name, column], n) for column in columns} for name in damages
    }
    rates |= {f"refused: {name} changed": Rate(refused[name], asked[name]) for name in asked if name in ATTRIBUTES}
    single = [name for name in asked if name in ATTRIBUTES]
    rates["refused: one attribute changed"] = Rate(sum(refused[k] for k in single), sum(asked[k] for k in single))
    rates["refused: another clip's prompt"] = Rate(refused["another clip's"], asked["another clip's"])
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=None)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rates = measure(args.n, args.seed, args.model)
    plain = {}
    for name, rate in rates.items():
        columns = rate if isinstance(rate, dict) else {"all": rate}
        print(f"{name:34}" + "  ".join(f"{column} {value}" for column, value in columns.items()))
        plain[name] = {column: [value.share, *value.interval] for column, value in columns.items()}
    if args.json:
        args.json.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
