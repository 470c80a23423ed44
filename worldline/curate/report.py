"""The report of a curation: one HTML file that shows what was kept and what was dropped, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from worldline.media.report import bars, figure, gallery, histogram, refusal, said, some, text, thumbnails, write_page
from worldline.records import Caption, Clip, reason_kind

KEPT, DROPPED = 60, 12  # clips shown: of those kept, and of those that one reason dropped


def report(
    clips: Sequence[Clip],
    captions: Sequence[Caption],
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the report, with the captions that there are; thumbnails of some clips are decoded for it."""
    kept = [clip for clip in clips if clip.kept]
    dropped: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if not clip.kept:
            dropped[reason_kind(clip.reason)].append(clip)
    dropped = dict(sorted(dropped.items(), key=lambda item: -len(item[1])))
    shown = {kind: some(own, DROPPED) for kind, own in dropped.items()}
    chosen = [*some(kept, KEPT), *(clip for own in shown.values() for clip in own)]
    pictures = thumbnails([clip for clip in chosen if clip.frames], progress)
    spoken = {caption.clip: caption for caption in captions}  # the newest of each clip

    def of(some_clips: Sequence[Clip]) -> str:
        return gallery(_figure(clip, pictures.get(clip.id), spoken.get(clip.id)) for clip in some_clips)

    parts = [
        f"<pre>{text(_totals(clips))}</pre>",
        "<h2>Dropped</h2>", bars(Counter({kind: len(own) for kind, own in dropped.items()})),
        *(f"<h3>{text(kind)}: {len(dropped[kind])}</h3>{of(own)}" for kind, own in shown.items()),
        f"<h2>Kept</h2>{of(some(kept, KEPT))}",
        "<h2>Seconds of a kept clip</h2>", histogram([clip.seconds for clip in kept], "s", 12),
        *_scores(clips),
    ]  # fmt: skip
    write_page(path, "worldline curate", parts)


def _totals(clips: Sequence[Clip]) -> str:
    lines = [f"{len({clip.source for clip in clips})} files, {len(clips)} clips"]
    for name, kept in (("kept", True), ("dropped", False)):
        own = [clip for clip in clips if clip.kept is kept]
        lines.append(f"{len(own):6} {name:8}{sum(clip.seconds for clip in own):10.1f} s")
    return "\n".join(lines)


def _figure(clip: Clip, picture: str | None, caption: Caption | None) -> str:
    scores = ", ".join([f"{name} {value:.3g}" for name, value in clip.scores.items()] + list(clip.labels.values()))
    remarks = "; ".join(decision.reason for decision in clip.decisions if decision.kept and decision.reason)
    lines = [
        "" if clip.kept else refusal(clip.reason),
        f"<span class=note>{text(scores)}</span>" if scores else "",
        text(remarks),
        said(caption) if caption else "",
    ]
    return figure(clip, picture, lines)


def _scores(clips: Sequence[Clip]) -> list[str]:
    """A histogram of each score of all clips, kept and dropped, and of the words that scores may be."""
    names = sorted({name for clip in clips for name in clip.scores})
    out = []
    for name in names:
        values = [float(clip.scores[name]) for clip in clips if name in clip.scores]
        out.append(f"<h2>{text(name)}, of all clips</h2>{histogram(values, '', 12)}")
    for name in sorted({name for clip in clips for name in clip.labels}):
        counts = Counter(clip.labels[name] for clip in clips if name in clip.labels)
        out.append(f"<h2>{text(name)}, of all clips</h2>{bars(counts)}")
    return out
