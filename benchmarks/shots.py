"""Boundaries found in films that are joined from clips, at the shipped settings: cuts, dissolves and fades.

    python -m benchmarks.shots FILM... [--half held-out|tuning] [--films 6] [--clips 20] [--worlds 60] [--json]

Clips are stretches of 1.3 to 2.1 seconds, one of each shot of the films: those of a film's first half are for setting
thresholds, those of its second half are held out; worlds of even and odd numbers likewise. No clip comes twice in a
film. A cut counts as found within `NEAR` frames; a dissolve or a fade if what is found covers more than half of it and
is not twice as long. What is found besides counts against the precision. `left` is the share of blended frames that
stay in clips, `lost` the share of the clips' own frames that are thrown away with the blends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.duplicates import HALVES
from worldline.curate.examine import examine
from worldline.curate.plan import CuratePlan
from worldline.curate.shots import Shots, Trim
from worldline.media.clips import read_clips
from worldline.media.write import write_video
from worldline.worlds.render import render
from worldline.worlds.scene import sample_scene

SEED = 0x73686F74
RATE = 24
SIZE = (320, 180)
NEAR = 2  # frames
KINDS = ("cuts", "dissolves", "fades", "mixed")
Mark = tuple[int, int, str]  # first and last frame that belong to neither clip alone; equal for a cut


def footage(films: list[Path], half: str) -> list[np.ndarray]:
    """One stretch of every shot that is long enough, uint8 (T, 180, 320, 3)."""
    out = []
    for film in films:
        rows = [clip for clip, _ in examine(film, str(film), CuratePlan(stages=(), trim=Trim(1.5, 5), duplicates=None))]
        middle = rows[-1].end / 2
        own = [clip for clip in rows if clip.kept and (clip.start < middle) == (half == "tuning")]
        seen = -1.0
        for clip, frames in read_clips(own):
            if not isinstance(frames, np.ndarray) or clip.start == seen:
                continue
            seen = clip.end  # the next part of a long shot looks the same
            inner = frames[2 : 2 + 60]
            out.append(np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in inner]))
    return out


def worlds(half: str, count: int) -> list[np.ndarray]:
    """Rendered worlds, 2 s each."""
    out = []
    for i in range(count):
        scene = sample_scene(np.random.default_rng([SEED, 2 * i + HALVES.index(half)]), "any")
        out.append(render(scene, 48, 90, 160, RATE).frames)
    return out


def joined(clips: list[np.ndarray], kind: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Mark]]:
    """A film of `count` clips and its true boundaries."""
    chosen = [clips[i] for i in rng.choice(len(clips), min(count, len(clips)), replace=False)]
    parts = []
    for clip in chosen:
        length = min(len(clip), int(rng.integers(32, 51)))
        parts.append(clip[:length].astype(np.float32))
    film, marks = list(parts[0]), []
    for part in parts[1:]:
        way = str(rng.choice(("cuts", "dissolves", "fades"), p=(0.7, 0.2, 0.1))) if kind == "mixed" else kind
        if way == "cuts":
            marks.append((len(film), len(film), way))
            film += list(part)
            continue
        span = int(rng.integers(8, 16))
        share = ((np.arange(span) + 1) / (span + 1))[:, None, None, None]
        if way == "dissolves":
            last = np.stack(film[-span:])
            film[-span:] = list((1 - share) * last + share * part[:span])
            marks.append((len(film) - span, len(film), way))
        else:
            film[-span:] = list((1 - share) * np.stack(film[-span:]))
            black = [np.zeros_like(part[0])] * int(rng.integers(1, 6))
            marks.append((len(film) - span, len(film) + len(black) + span, way))
            film += [*black, *(share * part[:span])]
        film += list(part[span:])
    return np.stack(film).round().astype(np.uint8), marks


def found_in(film: np.ndarray, path: Path, plan: Shots) -> list[Mark]:
    """What curation finds in a film, through H.264."""
    write_video(path, film, RATE, crf=23, overwrite=True)
    rows = examine(path, "film", CuratePlan(stages=(), shots=plan, trim=Trim(0, 1000), duplicates=None, refuse=()))
    out: list[Mark] = []
    for (clip, _), (after, _) in itertools.pairwise(rows):
        if "within" in clip.reason:
            out.append((clip.first_frame, clip.end_frame, f"{clip.reason.split()[-1]}s"))
        elif "within" not in after.reason:
            out.append((clip.end_frame, clip.end_frame, "cuts"))
    return out


def fits_on(true: Mark, found: Mark) -> bool:
    length = true[1] - true[0]
    if not length:
        return abs(found[0] - true[0]) <= NEAR and abs(found[1] - true[1]) <= NEAR
    common = min(true[1], found[1]) - max(true[0], found[0])
    return 2 * common > length and found[1] - found[0] < 2 * length


def matched(true: list[Mark], found: list[Mark]) -> Iterator[tuple[Mark | None, Mark | None]]:
    """Pairs of a true and a found boundary, each once; None where one has no other."""
    left = list(found)
    for mark in true:
        fits = [other for other in left if fits_on(mark, other)]
        if fits:
            left.remove(fits[0])
        yield mark, fits[0] if fits else None
    yield from ((None, mark) for mark in left)


def within(marks: list[Mark], frames: int) -> np.ndarray:
    """(frames,) bool: in one of the ranges."""
    out = np.zeros(frames, bool)
    for first, end, _ in marks:
        out[first:end] = True
    return out


def measure(clips: list[np.ndarray], kind: str, films: int, count: int, plan: Shots, say: bool) -> dict[str, float]:
    """Precision, recall and F1 of all boundaries of some films."""
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(films):
            rng = np.random.default_rng([SEED, number, KINDS.index(kind)])
            film, marks = joined(clips, kind, count, rng)
            found = found_in(film, Path(folder) / "film.mp4", plan)
            blended, dropped = within(marks, len(film)), within(found, len(film))
            counts["blended"] += int(blended.sum())
            counts["left"] += int((blended & ~dropped).sum())
            counts["lost"] += int((dropped & ~blended).sum())
            counts["own"] += int((~blended).sum())
            for mark, hit in matched(marks, found):
                counts["right" if mark and hit else "missed" if mark else "wrong"] += 1
                if say and not (mark and hit):
                    print(f"    {kind} film {number}: {'missed' if mark else 'wrong'} {mark or hit}")
    right, missed, wrong = (counts[name] for name in ("right", "missed", "wrong"))
    return {
        "boundaries": right + missed,
        "precision": right / max(1, right + wrong),
        "recall": right / max(1, right + missed),
        "f1": 2 * right / max(1, 2 * right + missed + wrong),
        "left": counts["left"] / max(1, counts["blended"]),
        "lost": counts["lost"] / counts["own"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--half", choices=HALVES, default="held-out")
    parser.add_argument("--films", type=int, default=6, help="joined of each kind")
    parser.add_argument("--clips", type=int, default=20, help="of a joined film")
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--misses", action="store_true", help="print each one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    out = {}
    for what, clips in (("real", footage(args.media, args.half)), ("worlds", worlds(args.half, args.worlds))):
        for kind in args.kinds.split(","):
            row = measure(clips, kind, args.films, args.clips, Shots(), args.misses)
            out[f"{what} {kind}"] = row
            if not args.json:
                figures = "  ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "boundaries")
                print(f"{args.half}, {what}, {kind}: {row['boundaries']} boundaries  {figures}", flush=True)
    if args.json:
        print(json.dumps({"half": args.half, **out}))


if __name__ == "__main__":
    main()
