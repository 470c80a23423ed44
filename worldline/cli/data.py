"""`worldline shards | doctor`: datasets made ready for training, and what a recipe would make of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from worldline.cli.parser import Parser, Verbs, add_verb, emit, note, number, progress, recipe, staged
from worldline.errors import UserError


def _add_dataset(parser: Parser) -> None:
    add = parser.add_argument
    kinds = "manifest, table (.csv .parquet .jsonl .json), folder of videos with .txt beside them, WebDataset tars"
    add("dataset", metavar="DATASET", help=kinds)
    add("--recipe", default="clips", help="plan of a training run, whose shapes and models count, or a Python file")
    add("--stage", default=None, help="stage of a recipe that has several; its first unless given")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a value, such as fit.max_frames=33")


def add_shards(verbs: Verbs) -> None:
    about = "precompute latents and text states of a dataset: WebDataset tars and an index of byte offsets"
    parser = add_verb(verbs, "shards", run_shards, about)
    _add_dataset(parser)
    add = parser.add_argument
    add("--out", required=True, help="folder or address (s3://...); a run that was stopped goes on where it was")
    add("--per-shard", type=number("--per-shard", True, "256"), default=256, help="clips of a shard")
    add("--dry-run", action="store_true", help="say what would be written, write nothing")


def run_shards(args: argparse.Namespace) -> None:
    """Open the dataset and the recipe's models, write the shards that are missing."""
    from worldline.generate.request import check_range

    check_range("--per-shard", args.per_shard, 1, 1_000_000, whole=True)
    plan = _plan(args)

    from worldline.train.clips import shards_of

    examples, broken = _opened(args.dataset)
    if args.dry_run:
        from worldline.train.doctor import examine

        found = examine(examples, plan, broken)
        return emit(args, found.as_dict(), found.table())
    with progress("encoding") as update:
        rows = shards_of(examples, plan, args.out, args.per_shard, update)
    kept = [row for row in rows if row.shard >= 0]
    dropped = [{"source": row.source, "start": row.start, "reason": row.reason} for row in rows if row.shard < 0]
    dropped += [{"source": source, "start": 0.0, "reason": reason} for source, reason in broken]
    size = sum(row.latents_size + row.states_size for row in kept)
    data = {
        "out": args.out,
        "clips": len(kept),
        "dropped": dropped,
        "bytes": size,
        "tokens": sum(r.tokens for r in kept),
    }
    lines = [f"dropped  {item['source']} {item['start']:.2f} s: {item['reason']}" for item in dropped]
    shards = len({row.shard for row in kept})
    emit(args, data, "\n".join([*lines, f"{args.out}: {len(kept)} clips in {shards} shards, {size / 1e6:.1f} MB"]))


def _plan(args: argparse.Namespace) -> Any:
    plan = staged(recipe(args.recipe, "dit"), args.stage)[0]

    from worldline.train.plan import plan_overrides

    return plan_overrides(plan, args.set)


def _opened(dataset: str) -> tuple[list[Any], list[tuple[str, str]]]:
    from worldline.data.dataset import open_dataset

    broken: list[tuple[str, str]] = []
    examples = open_dataset(dataset, lambda source, reason: broken.append((source, reason)))
    if not examples and not broken:
        raise UserError(f"{dataset}: holds no videos; give a manifest, a table, a folder of videos or WebDataset tars")
    return examples, broken


def add_doctor(verbs: Verbs) -> None:
    about = "where every clip of a dataset would land in a recipe, or why it would not; trains nothing"
    parser = add_verb(verbs, "doctor", run_doctor, about)
    _add_dataset(parser)
    add = parser.add_argument
    add("--test", default=None, metavar="DATASET", help="dataset that is kept for tests, to look for leaks")
    add(
        "--min-kept", type=number("--min-kept", example="0.5"), default=0.5, help="share below which the exit code is 1"
    )
    add("--ranks", type=number("--ranks", True, "1"), default=1, help="devices that the run would have")
    add("--out", default=None, metavar="HTML", help="single-file report with thumbnails and plots")
    add("--overwrite", action="store_true", help="replace a report that exists")


def run_doctor(args: argparse.Namespace) -> int:
    """Look at every clip, print the summary, write the report; 1 where too few clips would be learned."""
    from worldline.generate.request import check_range
    from worldline.media.write import check_writable

    check_range("--min-kept", args.min_kept, 0, 1)
    check_range("--ranks", args.ranks, 1, 4096, whole=True)
    if args.out:
        check_writable(args.out, args.overwrite, (".html",))
    plan = _plan(args)

    from worldline.train.doctor import examine
    from worldline.train.doctor_report import report

    examples, broken = _opened(args.dataset)
    tests = _opened(args.test)[0] if args.test else []
    found = examine(examples, plan, broken, tests, args.ranks)
    if args.out:
        with progress("thumbnails") as update:
            report(found, Path(args.out), args.recipe, update)
    written = [f"{args.out}  (report)"] if args.out else []
    emit(args, {**found.as_dict(), "report": args.out}, "\n".join([found.table(), *written]))
    if found.kept_share < args.min_kept:
        note(f"{found.kept_share:.0%} of the clips would be learned, less than --min-kept {args.min_kept:g}")
        return 1
    return 0
