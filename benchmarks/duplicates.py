"""Planted copies of clips that are found, and distinct clips that are taken for copies, at the shipped settings.

    python -m benchmarks.duplicates FILM... [--half held-out|tuning|both] [--worlds 300] [--prints FILE] [--json]

Every film is cut into shots; those of its first half are for tuning thresholds, those of its second half are held out,
and so are worlds of odd numbers. Of some shots of at most `LONGEST` seconds copies are planted: encoded again,
recoloured, cropped. `--prints` keeps what was seen of the clips, so that settings can be tried quickly.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldline.curate.duplicates import Duplicates, Print
from worldline.curate.examine import examine
from worldline.curate.plan import CuratePlan
from worldline.curate.shots import Trim
from worldline.media.clips import read_clips
from worldline.media.report import some
from worldline.media.write import write_video
from worldline.records import Clip
from worldline.worlds.render import render
from worldline.worlds.scene import sample_scene

LONGEST = 2.5  # seconds of a clip that copies are made of
SIDE = 180  # the short side of copies, or less
HALVES = ("tuning", "held-out")
SEED = 0x6475706C
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # uint8 (T, H, W, 3) -> the same


def hue(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turn = int(rng.integers(30, 150))

    def turned(frame: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    return np.stack([turned(frame) for frame in frames])


def levels(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """A change of colours in 0..1."""
    return lambda frames, rng: (255 * np.clip(change(frames / np.float32(255), rng), 0, 1)).round().astype(np.uint8)


def crop(low: float, high: float, middle: bool = False) -> Change:
    """Between `low` and `high` of width and height are cut away, the same part of both."""

    def cut(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        part, place = rng.uniform(low, high), np.full(2, 0.5) if middle else rng.random(2)
        size = (np.array(frames.shape[1:3]) * (1 - part)).astype(int)
        top, left = (place * (frames.shape[1:3] - size)).astype(int)
        return frames[:, top : top + size[0], left : left + size[1]]

    return cut


def narrow(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """To 4:3, or by a fifth where it is that already; what leaves less than 0.62 of the width is out of reach."""
    height, width = frames.shape[1:3]
    wanted = int(max(height * 4 / 3, 0.62 * width)) if width > 1.4 * height else int(0.8 * width)
    left = (width - wanted) // 2
    return frames[:, :, left : left + wanted]


def grey(x: np.ndarray) -> np.ndarray:
    return (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


COPIES: dict[str, Change] = {
    "encoded again": lambda frames, rng: frames,
    "hue": hue,
    "grey": levels(lambda x, rng: grey(x).repeat(3, -1)),
    "saturation": levels(lambda x, rng: grey(x) + rng.choice([0.4, 1.6]) * (x - grey(x))),
    "tint": levels(lambda x, rng: x * rng.uniform(0.75, 1.15, 3)),
    "gamma": levels(lambda x, rng: x ** rng.choice([0.6, 1.6])),
    "darker": levels(lambda x, rng: 0.5 * x),
    "brighter, clipped": levels(lambda x, rng: 1.4 * x + 0.05),
    "cropped by 10 %, middle": crop(0.1, 0.1, middle=True),
    "cropped by 5 to 25 %": crop(0.05, 0.25),
    "cropped to 4:3": narrow,
    "cropped and gamma": lambda frames, rng: COPIES["gamma"](crop(0.05, 0.2)(frames, rng), rng),
    "sped up by a quarter": lambda frames, rng: np.delete(frames, np.s_[4::5], 0),
    "a frame less at both ends": lambda frames, rng: frames[1:-1],
}


@cache
def seen(film: Path) -> list[tuple[Clip, Print | None]]:
    return examine(film, str(film), CuratePlan(stages=()))


def shots(films: list[Path], half: str, say: Callable[[str], None]) -> Iterator[tuple[Clip, Print]]:
    """Shots of one half of every film, found and looked at as `worldline curate` does; all that can be looked at count,
    whatever the filters think of them."""
    for film in films:
        rows = seen(film)
        middle = rows[-1][0].end / 2 if len(rows) > 1 else 0.0  # a film of one shot is held out
        found = [(clip, look) for clip, look in rows if look and (clip.start < middle) == (half == "tuning")]
        say(f"{film.name}: {len(found)} shots")
        yield from found


def worlds(half: str, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Rendered worlds of even numbers for tuning, of odd ones held out."""
    for i in range(count):
        scene = sample_scene(np.random.default_rng([SEED, 2 * i + HALVES.index(half)]), "any")
        yield f"world {i}", render(scene, 17, 128, 128).frames


def looked_at(frames: np.ndarray, name: str, rate: Any, folder: Path) -> tuple[Clip, Print]:
    """What curation sees of a clip, through H.264."""
    path = folder / "copy.mp4"
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    write_video(path, np.ascontiguousarray(frames), rate, crf=26, overwrite=True)
    ((clip, look),) = examine(path, name, CuratePlan(shots=None, stages=(), trim=Trim(0, 1000), refuse=()))
    assert look is not None
    return clip, look


def collect(
    films: list[Path], half: str, count: int, most: int, say: Callable[[str], None]
) -> list[tuple[Clip, Print, str]]:
    """Distinct clips (their kind is empty) and copies, whose `labels` name the clip that they were made of."""
    out = [(clip, look, "") for clip, look in shots(films, half, say)]
    short = some([clip for clip, _, _ in out if clip.seconds <= LONGEST], most)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for clip, frames in read_clips(short):
            assert isinstance(frames, np.ndarray)
            assert clip.media is not None
            scale = min(1.0, SIDE / min(frames.shape[1:3]))
            small = [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
            out += copies(np.stack(small), clip, round(clip.media.fps), folder)
            say(f"copies of {clip.start:.1f} s")
        for i, (name, frames) in enumerate(worlds(half, count)):
            clip, look = looked_at(frames, name, 16, folder)
            out.append((clip, look, ""))
            if i % max(1, count // most) == 0:
                out += copies(frames, clip, 16, folder)
    return out


def copies(frames: np.ndarray, clip: Clip, rate: Any, folder: Path) -> Iterator[tuple[Clip, Print, str]]:
    """One copy of each kind."""
    for number, (kind, change) in enumerate(COPIES.items()):
        rng = np.random.default_rng([SEED, int(clip.id[:8], 16), number])
        made, look = looked_at(change(frames, rng), f"{kind} of {clip.source} {clip.start:.1f}", rate, folder)
        yield replace(made, labels={"of": clip.id}), look, kind


def score(clips: list[tuple[Clip, Print, str]], plan: Duplicates) -> dict[str, Any]:
    """Copies found by kind, and pairs of distinct clips taken for one another.

    Copies of one clip are one family: who of it is kept is not asked, but every link must stay within it, and all of a
    family but one must be dropped.
    """
    family = {clip.id: clip.labels.get("of", clip.id) for clip, _, _ in clips}
    name = {clip.id: f"{Path(clip.source).name} {clip.start:.1f}" for clip, _, _ in clips}
    distinct = [(clip, look) for clip, look, kind in clips if not kind]
    lost = [clip for clip in plan.decide(distinct).values() if not clip.kept]
    false = [[name[clip.id], name[clip.duplicate_of]] for clip in lost]
    found, asked = Counter[str](), Counter[str]()
    for kind in COPIES:  # one kind at a time, beside all distinct clips
        some = [(clip, look) for clip, look, own in clips if own == kind]
        origins = {family[clip.id] for clip, _ in some}
        # What is dropped without any copy is no matter here.
        gone = {clip.id for clip in lost}
        base = [(clip, look) for clip, look in distinct if clip.id not in gone or clip.id in origins]
        for clip in plan.decide([*base, *some]).values():
            other = clip.duplicate_of
            if other and family[clip.id] == family[other]:
                found[kind] += 1
            elif other and [name[clip.id], name[other]] not in false:
                false.append([name[clip.id], name[other]])
        asked[kind] = len(some)
    recall = sum(found.values()) / max(1, sum(asked.values()))
    missed = {kind: asked[kind] - found[kind] for kind in COPIES if found[kind] < asked[kind]}
    pairs = len(distinct) * (len(distinct) - 1) // 2
    return {
        "distinct": len(distinct), "pairs": pairs, "false": false,
        "copies": sum(asked.values()), "recall": recall, "missed": missed,
    }  # fmt: skip


def save(path: Path, clips: list[tuple[Clip, Print, str]]) -> None:
    about = [[clip.as_dict(), kind] for clip, _, kind in clips]
    np.savez_compressed(path, json.dumps(about), *(look.pictures for _, look, _ in clips))


def load(path: Path) -> list[tuple[Clip, Print, str]]:
    from worldline.records import clip_from_dict

    with np.load(path) as file:
        names = sorted(file.files, key=lambda name: int(name.removeprefix("arr_")))
        about = json.loads(str(file[names[0]]))
        return [
            (clip_from_dict(row), Print(file[name]), kind) for (row, kind), name in zip(about, names[1:], strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path)
    parser.add_argument("--half", choices=(*HALVES, "both"), default="held-out")
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--copied", type=int, default=40, help="clips, and as many worlds, that copies are made of")
    parser.add_argument("--prints", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    for half in HALVES if args.half == "both" else (args.half,):
        report(half, args)


def report(half: str, args: argparse.Namespace) -> None:
    """Prints what is found in one half."""
    kept = args.prints and args.prints.with_name(f"{args.prints.stem}-{half}.npz")
    if kept and kept.exists():
        clips = load(kept)
    else:
        clips = collect(
            args.films, half, args.worlds, args.copied, lambda line: print(line, file=sys.stderr, flush=True)
        )
        if kept:
            save(kept, clips)
    for what, world in (("real", False), ("worlds", True)):
        some = [row for row in clips if ("world " in row[0].source) == world]
        result = score(some, Duplicates())
        if args.json:
            print(json.dumps({"half": half, "of": what, **result}))
            continue
        print(f"{half}, {what}: {result['distinct']} distinct clips, {len(result['false'])} false pairs")
        print(f"  {result['recall']:.1%} of {result['copies']} copies found; missed: {result['missed']}")
        for pair in result["false"]:
            print(f"  FALSE {' = '.join(pair)}")


if __name__ == "__main__":
    main()
