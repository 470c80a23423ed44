"""One file to its clips: the pass over its frames, and what the stages of a plan make of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from worldline.curate import duplicates, probe
from worldline.curate.plan import CuratePlan
from worldline.curate.stage import CLOSE, LOOKS, Look
from worldline.errors import UserError
from worldline.media.scan import Scan
from worldline.records import Clip, Decision, Media, clip_id

SHORT_SIDE = 90  # pixels of the picture that most stages see
DIGITS = 6  # of times and scores


@dataclass
class Notes:
    """What the pass over one file left."""

    looks: list[int]  # frame of each look
    close: list[int]  # of each close look
    seen: list[list[Any]]  # per stage, a note for each look or close look
    tiny: list[np.ndarray]  # per frame
    ranges: list[tuple[int, int, str]]
    flat: bool


def examine(path: Path, source: str, plan: CuratePlan) -> list[tuple[Clip, duplicates.Print | None]]:
    """All rows of a file, in order, each kept one with its print; across files nothing is decided yet.

    `path` is where the file lies, `source` what it is called in the rows.
    """
    sha256 = file_hash(path)
    try:
        with Scan(path, SHORT_SIDE) as scan:
            notes = _watch(scan, plan)
    except UserError as error:
        return [(quarantined(source, sha256, probe.unreadable(path, _complaint(error, path))), None)]
    if not scan.times:
        return [(quarantined(source, sha256, probe.unreadable(path, "no frame could be decoded")), None)]
    found = probe.findings(path, scan, notes.flat)
    media = _media(scan)
    refused = [finding for finding in found if finding.name in plan.refuse]
    if refused:
        return [(quarantined(source, sha256, refused[0], len(scan.times), scan.end, media), None)]
    remark = "; ".join(str(finding) for finding in found)
    whole = Clip("", source, sha256, 0, 0, 0.0, 0.0, True, "", (Decision("probe", True, remark),), media=media)
    return clips_of(notes, np.append(scan.times, scan.end), scan.size, plan, whole)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quarantined(
    source: str, sha256: str, why: probe.Found, frames: int = 0, end: float = 0.0, media: Media | None = None
) -> Clip:
    """The one row of a file that cannot be used."""
    decision = Decision("probe", False, str(why))
    identity = clip_id(sha256, 0, frames)
    seconds = round(end, DIGITS)
    return Clip(identity, source, sha256, 0, frames, 0.0, seconds, False, f"probe: {why}", (decision,), media=media)


def _complaint(error: UserError, path: Path) -> str:
    """The first half of a reader's message, without the name of the file."""
    return str(error).removeprefix(f"{path}: ").split(";")[0]


def _watch(scan: Scan, plan: CuratePlan) -> Notes:
    """Shows every frame to the finder of shots and every look to the stages."""
    import cv2

    cv2.setNumThreads(1)
    finder = plan.shots.begin(float(scan.header.rate)) if plan.shots else None
    notes = Notes([], [], [[] for _ in plan.stages], [], [], True)
    last: Look | None = None
    turn = -1
    for seen in scan:
        due = math.floor(seen.seconds * LOOKS + 1e-6)
        looks = due > turn
        if finder:
            finder.see(seen.picture)
        if plan.duplicates:
            notes.tiny.append(duplicates.tiny(seen.picture))
        if not looks:
            continue
        close = due // CLOSE > turn // CLOSE
        turn = due
        grey = cv2.cvtColor(seen.picture, cv2.COLOR_BGR2GRAY)
        before, elapsed = (last.grey, seen.seconds - last.seconds) if last else (None, 0.0)
        last = Look(
            seen.index, seen.seconds, seen.picture, grey, before, elapsed, seen.size, cache(seen.luma), seen.sized
        )
        notes.flat &= cv2.meanStdDev(grey)[1][0, 0] < probe.FLAT
        notes.looks.append(seen.index)
        notes.close += [seen.index] if close else []
        for stage, seen_by in zip(plan.stages, notes.seen, strict=True):
            if close or not stage.close:
                seen_by.append(stage.see(last))
    frames = len(scan.times)
    notes.ranges = finder.ranges() if finder else [(0, frames, "shot")]
    return notes


def clips_of(
    notes: Notes, times: np.ndarray, size: tuple[int, int], plan: CuratePlan, whole: Clip
) -> list[tuple[Clip, duplicates.Print | None]]:
    """Cuts the ranges of `whole` to length and judges what is long enough.

    `times` (frames + 1,) are seconds, the last one the end; `size` is width and height as shown.
    """
    out: list[tuple[Clip, duplicates.Print | None]] = []
    for first, end, kind in notes.ranges:
        parts = plan.trim.parts(first, end, times) if kind == "shot" else [(first, end)]
        for a, b in parts:
            clip = replace(
                whole,
                id=clip_id(whole.source_sha256, a, b),
                first_frame=a,
                end_frame=b,
                start=round(float(times[a]), DIGITS),
                end=round(float(times[b]), DIGITS),
            )
            if kind != "shot":
                out.append((_decided(clip, Decision("shots", False, f"within a {kind}")), None))
            elif clip.seconds < plan.trim.least - 1e-6:
                reason = f"{clip.seconds:.2f} s, at least {plan.trim.least:g} s"
                out.append((_decided(clip, Decision("trim", False, reason)), None))
            else:
                out.append(_judged(clip, notes, plan, times[a : b + 1], size))
    return out


def _judged(
    clip: Clip, notes: Notes, plan: CuratePlan, times: np.ndarray, size: tuple[int, int]
) -> tuple[Clip, duplicates.Print | None]:
    """The clip with all scores and decisions; its print if it is kept and duplicates are looked for."""
    for stage, seen in zip(plan.stages, notes.seen, strict=True):
        frames = notes.close if stage.close else notes.looks
        start, stop = np.searchsorted(frames, [clip.first_frame, clip.end_frame])
        if start == stop:
            clip = _decided(clip, Decision(stage.name, True, "too short to measure"))
            continue
        judgement = stage.judge(seen[start:stop], size)
        scores = {name: float(f"{value:.{DIGITS}g}") for name, value in judgement.scores.items()}
        clip = replace(
            clip,
            scores={**clip.scores, **scores},
            labels={**clip.labels, **judgement.labels},
            crop=judgement.crop or clip.crop,
        )
        clip = _decided(clip, Decision(stage.name, not judgement.reason, judgement.reason or judgement.remark))
    if not plan.duplicates:
        return clip, None
    look = duplicates.print_of(notes.tiny[clip.first_frame : clip.end_frame], times, clip.crop, size)
    return replace(clip, fingerprint=duplicates.fingerprint(look)), look if clip.kept else None


def _decided(clip: Clip, decision: Decision) -> Clip:
    """The clip after one more decision; the first reason to drop it stays."""
    reason = clip.reason or ("" if decision.kept else f"{decision.stage}: {decision.reason}")
    return replace(clip, kept=clip.kept and decision.kept, reason=reason, decisions=(*clip.decisions, decision))


def _media(scan: Scan) -> Media:
    header, steps = scan.header, np.diff(scan.times)
    return Media(
        container=header.container,
        codec=header.codec,
        pixel_format=header.pixel_format,
        bit_depth=header.bit_depth,
        width=scan.size[0],
        height=scan.size[1],
        fps=float(header.rate),
        variable_rate=probe.variable(steps, float(np.median(steps)) if len(steps) else 0.0),
        frames=len(scan.times),
        seconds=round(scan.end, DIGITS),
        claimed_seconds=round(header.seconds, DIGITS),
        rotation=scan.rotation,
        colour=header.colour,
        audio=header.audio,
    )
