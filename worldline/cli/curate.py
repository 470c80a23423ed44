"""`worldline curate`: footage to clips, and a manifest that says what became of every second of it."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from typing import Any

from worldline.cli.generate import max_memory_of
from worldline.cli.parser import Verbs, add_verb, emit, note, number, progress, recipe
from worldline.errors import UserError


def add_curate(verbs: Verbs) -> None:
    about = "cut footage into clips, score, filter and deduplicate them; every decision is a row of a Parquet manifest"
    parser = add_verb(verbs, "curate", run_curate, about)
    add = parser.add_argument
    sources = "videos, folders, globs, a list of them (.txt, one a line) or addresses that fsspec knows (s3://...)"
    add("sources", metavar="SRC", nargs="+", help=sources)
    add("--out", required=True, help="folder for manifest.parquet; a run that was stopped goes on where it was")
    add("--recipe", default="footage", help="plan to start from, or a Python file of your own")
    setting = "change a threshold of a stage, for example sharpness.least=0.2, or the faults to refuse, refuse+=rotated"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=setting)
    optional = "add a stage: text (extra `ocr`), aesthetic (weights by --set aesthetic.clip= and aesthetic.head=)"
    add("--with", action="append", default=[], metavar="STAGE", dest="with_stages", help=optional)
    add("--without", action="append", default=[], metavar="STAGE", help="leave a stage out, for example motion")
    add("--min-seconds", type=number("--min-seconds"), default=None, help="shorter clips are dropped; the recipe's")
    add("--max-seconds", type=number("--max-seconds"), default=None, help="longer ones are cut up; the recipe's")
    add("--transcode", action="store_true", help="write kept clips as clean H.264 beside the manifest")
    add("--report", action="store_true", help="write report.html as well: kept and dropped clips to look at")
    add("--engine", default="local", choices=("local", "ray"), help="processes here, or Ray Data (extra `ray`)")
    add("--workers", type=number("--workers", True, "2"), default=None, help="files at a time; one per processor")
    add("--max-memory", default="4GB", help="of one file's process; a file that needs more is quarantined")
    add("--dry-run", action="store_true", help="print files, plan and what is done already; decode nothing")


def run_curate(args: argparse.Namespace) -> None:
    """Expand the sources, run the stages, print what was kept and why the rest was not."""
    from worldline.generate.request import check_range

    workers = os.cpu_count() or 1 if args.workers is None else args.workers
    check_range("--workers", workers, 1, 4096, whole=True)

    from worldline.curate.pipeline import curate, missing
    from worldline.curate.pool import Caps
    from worldline.curate.sources import expand

    plan = plan_of(args)
    caps = Caps(memory=int(max_memory_of(args) or 0))
    sources, ignored = expand(args.sources)
    if ignored:
        note(f"{len(ignored)} files of the folders have no video suffix and are left out, such as {ignored[0]}")
    if args.dry_run:
        from pathlib import Path

        todo = missing(sources, Path(args.out), plan)
        size = sum(source.size for source in sources)
        data = {"files": len(sources), "bytes": size, "done": len(sources) - len(todo), "plan": plan_dict(plan)}
        lines = [f"{len(sources)} files, {size / 1e6:.1f} MB, {len(sources) - len(todo)} of them done", *describe(plan)]
        return emit(args, {**data, "ignored": ignored}, "\n".join(lines))
    if not sources:
        raise UserError(f"SRC {args.sources[0]}: holds no file with a video suffix")
    with progress("curating") as update:
        summary = curate(sources, args.out, plan, workers, args.engine, caps, args.transcode, update)
    if args.report:
        from worldline.curate.report import report
        from worldline.records import CAPTIONS, read_captions

        captions = read_captions(summary.manifest.with_name(CAPTIONS))
        with progress("thumbnails") as update:
            report(summary.clips, captions, summary.manifest.with_name("report.html"), update)
    seconds = {True: 0.0, False: 0.0}
    for clip in summary.clips:
        seconds[clip.kept] += clip.seconds
    reasons = summary.reasons()
    data = {
        "manifest": str(summary.manifest),
        "sha256": summary.sha256,
        "files": summary.files,
        "done_before": summary.done_before,
        "ignored": ignored,
        "clips": len(summary.clips),
        "kept": len(summary.kept),
        "kept_seconds": round(seconds[True], 3),
        "dropped_seconds": round(seconds[False], 3),
        "dropped": reasons,
    }
    head = f"{summary.files} files, {len(summary.clips)} clips: {len(summary.kept)} kept ({seconds[True]:.1f} s)"
    lines = [f"{head}, {len(summary.clips) - len(summary.kept)} dropped ({seconds[False]:.1f} s)"]
    lines += [f"{count:6}  {reason}" for reason, count in reasons.items()]
    lines.append(str(summary.manifest))
    if args.report:
        data["report"] = str(summary.manifest.with_name("report.html"))
        lines.append(f"{data['report']}  (report)")
    emit(args, data, "\n".join(lines))


def plan_of(args: argparse.Namespace) -> Any:
    """The recipe's plan with --min-seconds, --max-seconds, --with, --without and --set applied."""
    plan = recipe(args.recipe, "curate")
    trim = plan.trim
    least = trim.least if args.min_seconds is None else args.min_seconds
    most = trim.most if args.max_seconds is None else args.max_seconds
    if least < 0 or most <= 0 or least > most:
        raise UserError(f"--min-seconds {least:g}, --max-seconds {most:g}: use 0 or more, and no more than the longest")
    plan = dataclasses.replace(plan, trim=dataclasses.replace(trim, least=least, most=most))
    for name in args.with_stages:
        plan = _with(plan, name)
    for name in args.without:
        plan = _without(plan, name)
    for setting in args.set:
        plan = _changed(plan, setting)
    return plan


def _parts(plan: Any) -> dict[str, Any]:
    """Stages by the name that the command line knows them by."""
    whole = {"shots": plan.shots, "trim": plan.trim, "duplicates": plan.duplicates}
    return {**{k: v for k, v in whole.items() if v}, **{stage.name: stage for stage in plan.stages}}


def _nearest(flag: str, name: str, known: list[str]) -> UserError:
    near = difflib.get_close_matches(name, known, 1) or [", ".join(known)]
    return UserError(f"{flag} {name[:40]}: no such stage in this recipe; nearest: {near[0]}")


def _with(plan: Any, name: str) -> Any:
    from worldline.curate.plan import OPTIONAL

    found = next((stage for stage in OPTIONAL if stage.name == name), None)
    if found is None:
        raise UserError(f"--with {name[:40]}: no such stage; use {' or '.join(stage.name for stage in OPTIONAL)}")
    return plan if found in plan.stages else dataclasses.replace(plan, stages=(*plan.stages, found))


def _without(plan: Any, name: str) -> Any:
    if name not in _parts(plan) or name == "trim":
        raise _nearest("--without", name, [part for part in _parts(plan) if part != "trim"])
    if name in ("shots", "duplicates"):
        return dataclasses.replace(plan, **{name: None})
    return dataclasses.replace(plan, stages=tuple(stage for stage in plan.stages if stage.name != name))


def _changed(plan: Any, setting: str) -> Any:
    """The plan after `stage.field=value`, `refuse=a,b` or `refuse+=a`."""
    from worldline.curate.probe import FAULTS, REMARKS
    from worldline.train.plan import plan_overrides

    path, _, value = setting.partition("=")
    name, _, field = path.strip().partition(".")
    if name in ("refuse", "refuse+"):
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        for word in words:
            if word not in FAULTS + REMARKS:
                raise UserError(f"--set {setting}: unknown fault {word!r}; known are {', '.join(FAULTS + REMARKS)}")
        return dataclasses.replace(plan, refuse=words if name == "refuse" else (*plan.refuse, *words))
    parts = _parts(plan)
    if name not in parts or not field:
        raise _nearest("--set", name, list(parts))
    changed = plan_overrides(parts[name], [f"{field}={value}"])
    if name in ("shots", "trim", "duplicates"):
        return dataclasses.replace(plan, **{name: changed})
    return dataclasses.replace(plan, stages=tuple(changed if stage.name == name else stage for stage in plan.stages))


def plan_dict(plan: Any) -> dict[str, Any]:
    """The plan as plain JSON types, stages in order."""
    stages = {name: dataclasses.asdict(part) for name, part in _parts(plan).items()}
    return {"refuse": list(plan.refuse), "stages": stages}


def describe(plan: Any) -> list[str]:
    """The plan as lines for people."""
    lines = [f"refused  {', '.join(plan.refuse)}"]
    for name, part in _parts(plan).items():
        fields = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(part).items())
        lines.append(f"{name:<11}{fields}")
    return lines
