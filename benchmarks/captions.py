"""Does the captioner name what is there? Captions of fresh worlds, read back and held against the truth, by attribute.

    python -m benchmarks.captions [--n 300] [--captioner FOLDER] [--json F.json] [--sheet F.png] [--real a.mp4 ...]

Beside it the verifier (`worlds.verify`) looks at the same clips: the two share no weights and no method, so where they
agree they are hardly both wrong. Scenes are of seeds that neither was trained on. Real clips are only shown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldline.caption.captioner import SURE, Shipped
from worldline.eval.report import Rate
from worldline.media.preview import contact_sheet
from worldline.media.read import read_video
from worldline.media.write import write_image, write_video
from worldline.worlds.facts import Facts, facts_of, pairs, read_facts
from worldline.worlds.render import render
from worldline.worlds.scene import Scene, is_heldout, sample_scene
from worldline.worlds.verify import judge, read
from worldline.worlds.verify_training import vae_like

SEED = 0x63617074  # apart from the seeds of every training
THING = ("colour", "shape", "size", "motion", "speed")
ROOM = ("count", "event", "camera", "arrangement", "floor", "floor_colour", "sky")
Rates = dict[str, Rate]
View = Callable[[Scene, np.random.Generator], np.ndarray]


def through_h264(frames: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "clip.mp4", frames, 16, crf=23)
        return read_video(Path(folder) / "clip.mp4").frames


VIEWS: dict[str, View] = {
    "clean 64x64": lambda scene, rng: render(scene).frames,
    "H.264 crf 23": lambda scene, rng: through_h264(render(scene).frames),
    "VAE-like": lambda scene, rng: vae_like(render(scene).frames, rng),
    "96x64": lambda scene, rng: render(scene, 17, 64, 96).frames,
    "160x160, 33 frames": lambda scene, rng: render(scene, 33, 160, 160, 32.0).frames,
}


def marks(truth: Facts, said: Facts) -> dict[str, list[bool]]:
    """For every attribute whether it is right: of each thing that is there, and once of the room."""
    out: dict[str, list[bool]] = {name: [getattr(truth, name) == getattr(said, name)] for name in ROOM}
    for thing, other in pairs(truth.things, said.things):
        for name in THING:
            out.setdefault(name, []).append(other is not None and getattr(thing, name) == getattr(other, name))
    return out


def score(captioner: Shipped, view: View, n: int) -> tuple[Rates, Rates, list[tuple[np.ndarray, str]]]:
    """Rates by attribute, rates by kind of scene (everything right), and clips with their captions."""
    right, asked = Counter[str](), Counter[str]()
    whole: dict[str, list[bool]] = defaultdict(list)
    shown = []
    for start in range(0, n, 32):
        rngs = [np.random.default_rng([SEED, i]) for i in range(start, min(start + 32, n))]
        scenes = [sample_scene(rng, "any") for rng in rngs]
        clips = [view(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
        for scene, clip, spoken in zip(scenes, clips, captioner.describe(clips), strict=True):
            found = marks(facts_of(scene), read_facts(spoken.text))
            for name, values in found.items():
                right[name] += sum(values)
                asked[name] += len(values)
            all_right = all(all(values) for values in found.values())
            seen = judge(read(clip), scene)["all"]
            whole["all"].append(all_right)
            whole["unseen compositions" if is_heldout(scene) else "seen compositions"].append(all_right)
            whole[f"{scene.count} things"].append(all_right)
            essential = ("colour", "shape", "count", "motion", "camera", "event", "arrangement")
            said = all(all(found[name]) for name in essential)
            whole["captioner, what the verifier asks for"].append(said)
            whole["verifier"].append(seen)
            whole["both agree"].append(said == seen)
            whole["sure enough"].append((spoken.sure or 0) >= SURE)
            shown.append((clip, ("" if all_right else "WRONG ") + spoken.text))
    rates = {name: Rate(right[name], asked[name]) for name in (*THING, *ROOM)}
    return rates, {name: Rate(sum(values), len(values)) for name, values in sorted(whole.items())}, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--captioner", type=Path, default=None)
    parser.add_argument("--views", default=",".join(VIEWS), help="which, with commas")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--real", nargs="*", default=[], help="videos to caption, outside the captioner's domain")
    args = parser.parse_args()
    captioner = Shipped(args.captioner) if args.captioner else Shipped()
    data = {}
    for name in args.views.split(","):
        rates, whole, shown = score(captioner, VIEWS[name], args.n)
        overall = Rate(sum(r.right for r in rates.values()), sum(r.total for r in rates.values()))
        print(f"\n{name}: {args.n} clips, all attributes {overall}")
        print("  " + "  ".join(f"{key} {rate}" for key, rate in rates.items()))
        print("  " + "  ".join(f"{key}: {rate}" for key, rate in whole.items()), flush=True)
        data[name] = {key: rate.share for key, rate in {"overall": overall, **rates, **whole}.items()}
        if args.sheet and name == args.views.split(",")[0]:
            clips, labels = zip(*shown[:16], strict=True)
            write_image(args.sheet, contact_sheet(list(clips), list(labels), scale=2))
    for path in args.real:
        (spoken,) = captioner.describe([read_video(path, max_frames=64).frames])
        print(f"{path}: {spoken.text} (sure {spoken.sure:.2f}; outside its domain)")
    if args.json:
        args.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
