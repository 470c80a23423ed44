"""Does the model obey people? Videos for `freeform_prompts.json`, judged by the verifier.

    python -m benchmarks.freeform [--model DIR] [--seeds 2] [--rewrite] [--json out.json] [--sheet sheet.png]

Fifty sentences by hand, with synonyms and word orders that the caption grammar never says. Each is drawn with several
seeds. The sentences say no size and no speed, so neither is judged.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from worldline.caption.rewrite import rewrite
from worldline.eval.report import Rate
from worldline.generate.load import load
from worldline.media.preview import contact_sheet
from worldline.media.write import write_image
from worldline.worlds.scene import Scene, Thing
from worldline.worlds.verify import REQUIRED, judge, read

PROMPTS = Path(__file__).with_name("freeform_prompts.json")


def scene_of(entry: dict[str, Any]) -> Scene:
    """The least that a video of the sentence must show."""
    things = [Thing(entry["shape"], entry["colour"], "small", entry["motion"])]
    if entry["second"]:
        things.append(Thing(entry["second"]["shape"], entry["second"]["colour"], "small", x=1.0))
    return Scene(tuple(things), event=entry["event"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rewrite", action="store_true", help="draw what `worldline rewrite` makes of the sentences")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--sheet", type=Path, default=None)
    args = parser.parse_args()
    entries = json.loads(PROMPTS.read_text())
    prompts = [rewrite(entry["prompt"]).text if args.rewrite else entry["prompt"] for entry in entries]
    pipeline = load(args.model)
    right: Counter[tuple[int, str]] = Counter()
    asked: Counter[int] = Counter()
    clips, labels = [], []
    for seed in range(args.seeds):
        videos = pipeline.answer(prompts, [1000 * seed + i for i in range(len(entries))])
        for entry, video in zip(entries, videos, strict=True):
            scene = scene_of(entry)
            verdict = judge(read(video), scene)
            asked[scene.count] += 1
            right.update((scene.count, name) for name, ok in verdict.items() if ok)
            clips.append(video)
            labels.append(("right: " if verdict["all"] else "wrong: ") + entry["prompt"])
    rates = {}
    for count in sorted(asked):
        row = {name: Rate(right[count, name], asked[count]) for name in ("all", *REQUIRED)}
        print(
            f"{count} object{'s' if count > 1 else ' '}  " + "  ".join(f"{name} {rate}" for name, rate in row.items())
        )
        rates[str(count)] = {name: [rate.share, *rate.interval] for name, rate in row.items()}
    total = Rate(sum(right[count, "all"] for count in asked), sum(asked.values()))
    print(f"all right: {total} of {total.total} videos")
    if args.json:
        args.json.write_text(json.dumps({**rates, "all": [total.share, *total.interval]}, indent=2) + "\n")
    if args.sheet:
        write_image(args.sheet, contact_sheet(clips[: len(entries)], labels[: len(entries)]))


if __name__ == "__main__":
    main()
