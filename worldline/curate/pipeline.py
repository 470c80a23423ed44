"""Files to a manifest: every file on its own, in processes here or on Ray, then duplicates across all of them.

What came of a file is kept as a part, named by the file and the plan. A run that was killed finds the parts and does
only what is missing; the manifest depends on nothing but files and plan, not on order, workers or engine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from worldline.curate import pool, probe
from worldline.curate.duplicates import Duplicates, Print
from worldline.curate.examine import examine, quarantined
from worldline.curate.plan import CuratePlan
from worldline.curate.sources import Source, local_copy
from worldline.curate.transcode import transcode
from worldline.errors import UserError
from worldline.records import MANIFEST, Clip, clip_from_dict, reason_kind, write_manifest

PARTS = ".parts"  # folder beside the manifest
ENGINES = ("local", "ray")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """What a curation came to."""

    manifest: Path
    sha256: str
    files: int
    done_before: int  # files whose part was there
    clips: list[Clip]

    @property
    def kept(self) -> list[Clip]:
        return [clip for clip in self.clips if clip.kept]

    def reasons(self) -> dict[str, int]:
        """How many clips each reason dropped, by stage and the first words of the reason, most first."""
        counts = Counter(reason_kind(clip.reason) for clip in self.clips if not clip.kept)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def part_path(out: Path, source: Source, plan: CuratePlan) -> Path:
    """Where the part of a file lies; another file, other bytes or another plan have another part. Of the search for
    duplicates a part holds prints alone, whatever makes two of them the same."""
    examined = dataclasses.replace(plan, duplicates=plan.duplicates and Duplicates())
    identity = json.dumps([repr(examined), dataclasses.astuple(source)])
    return out / PARTS / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def missing(sources: Sequence[Source], out: Path, plan: CuratePlan) -> list[Source]:
    """Files without a part."""
    return [source for source in sources if not part_path(out, source, plan).exists()]


def curate(
    sources: Sequence[Source],
    out: str | Path,
    plan: CuratePlan | None = None,
    workers: int = 1,
    engine: str = "local",
    caps: pool.Caps | None = None,
    to_h264: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Examines what is missing, decides about duplicates, writes the manifest and, if asked, kept clips as H.264.

    Raises UserError for an unknown engine, for one or a stage whose extra is missing, and for a folder that cannot be
    written.
    """
    plan, caps, out = plan or CuratePlan(), caps or pool.Caps(), Path(out)
    run = _engine(engine)
    for stage in plan.stages:
        stage.check()
    _make(out / PARTS)
    todo = missing(sources, out, plan)
    paths = {source.name: part_path(out, source, plan) for source in sources}
    tasks = [pool.Task(source.name, (source.name, plan), source.size) for source in todo]
    done = len(sources) - len(todo)
    for outcome in run(part_of, tasks, workers, caps):
        _write(paths[outcome.key], _part(outcome))
        done += 1
        if progress:
            progress(done, len(sources))
    clips = list(decide((json.loads(paths[source.name].read_bytes()) for source in sources), plan))
    if to_h264:
        clips = _transcoded(clips, out, run, workers, caps, {source.name: source.size for source in sources})
    digest = write_manifest(out / MANIFEST, clips)
    return Summary(out / MANIFEST, digest, len(sources), len(sources) - len(todo), clips)


def part_of(name: str, plan: CuratePlan) -> dict[str, Any]:
    """The part of one file in plain JSON types: its rows, and the prints of those that are kept."""
    with local_copy(name) as path:
        rows = examine(path, name, plan)
    return {"clips": [clip.as_dict() for clip, _ in rows], "prints": [look and look.encode() for _, look in rows]}


def decide(parts: Iterable[dict[str, Any]], plan: CuratePlan) -> Iterator[Clip]:
    """All clips of all parts, after duplicates among those that are kept."""
    clips: list[Clip] = []
    prints: list[tuple[Clip, Print]] = []
    for part in parts:
        for row, look in zip(part["clips"], part["prints"], strict=True):
            clip = clip_from_dict(row)
            clips.append(clip)
            if clip.kept and look:
                prints.append((clip, Print.decode(look)))
    decided = plan.duplicates.decide(prints) if plan.duplicates else {}
    return (decided.get((clip.id, clip.source), clip) for clip in clips)


def _part(outcome: pool.Outcome) -> dict[str, Any]:
    if not outcome.fault:
        return outcome.value
    # The bytes may be what kills a reader, so they are hashed here, where nothing is decoded.
    with local_copy(outcome.key) as path, path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    row = quarantined(outcome.key, sha256, probe.Found(outcome.fault, outcome.detail))
    return {"clips": [row.as_dict()], "prints": [None]}


def _transcoded(
    clips: list[Clip], out: Path, run: Any, workers: int, caps: pool.Caps, sizes: dict[str, int]
) -> list[Clip]:
    """Clips with the path of their H.264 file; those that exist are not written again."""
    _make(out / "clips")
    wanted: dict[str, list[Clip]] = {}
    paths = {clip.id: f"clips/{clip.id}.mp4" for clip in clips if clip.kept}
    for clip in sorted(clips, key=lambda clip: clip.first_frame):
        if clip.kept and not (out / paths[clip.id]).exists():
            wanted.setdefault(clip.source, []).append(clip)
    tasks = [pool.Task(name, (name, some, str(out / "clips")), 10 * sizes[name]) for name, some in wanted.items()]
    for outcome in run(transcode, tasks, workers, caps):
        if outcome.fault:
            raise UserError(f"{outcome.key}: transcoding failed ({outcome.fault}: {outcome.detail})")
    return [dataclasses.replace(clip, path=paths[clip.id]) if clip.kept else clip for clip in clips]


# ---- engines ---------------------------------------------------------------------------------------


def _engine(name: str) -> Any:
    if name == "local":
        return pool.run
    if name == "ray":
        return _ray_data()
    raise UserError(f"--engine {name[:40]!r}: unknown; use {' or '.join(ENGINES)}")


def _ray_data() -> Any:
    """`pool.run` on a cluster: Ray Data hands out the tasks, and each is guarded by a process of its own as here."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray needs the extra `ray`; install it with `pip install 'worldline[ray]'`") from None

    def run(
        work: Callable[..., Any], tasks: Sequence[pool.Task], workers: int, caps: pool.Caps
    ) -> Iterator[pool.Outcome]:
        if not tasks:
            return
        ours = not ray.is_initialized()
        if ours:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        by_key = {task.key: task for task in tasks}
        # One block per file: a worker that dies takes one file with it, and Ray starts that one again, without end.
        rows = ray.data.from_items([{"key": task.key} for task in tasks], override_num_blocks=len(tasks))
        answers = rows.map(
            partial(_on_ray, work=work, tasks=by_key, caps=caps), num_cpus=1, ray_remote_args_fn=_restart_for_ever
        )
        with redirect_stdout(sys.stderr):  # where Ray prints what became of its workers
            for row in answers.iter_rows():
                yield pool.Outcome(**json.loads(row["outcome"]))
            if ours:
                ray.shutdown()

    return run


def _restart_for_ever() -> dict[str, Any]:
    return {"max_retries": -1}


def _on_ray(
    row: dict[str, Any], work: Callable[..., Any], tasks: dict[str, pool.Task], caps: pool.Caps
) -> dict[str, str]:
    outcome = next(pool.run(work, [tasks[row["key"]]], 1, caps))
    return {"outcome": json.dumps(dataclasses.asdict(outcome))}


# ---- files -----------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror}); use another folder") from error


def _write(path: Path, part: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(part), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
