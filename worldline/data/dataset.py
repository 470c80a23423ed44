"""Reads existing datasets as they are: a manifest of ours, tables, folders of pairs, WebDataset tars, single videos.

| what is given                                  | clips and captions                                             |
|------------------------------------------------|----------------------------------------------------------------|
| manifest.parquet, or the folder that holds it  | kept clips, captions.parquet beside it                         |
| table: .csv .parquet .jsonl .json              | a row each; columns by any of the names in `ALIASES`           |
| folder with metadata.csv or metadata.jsonl     | that table                                                     |
| folder with videos.txt and prompt.txt          | a line each                                                    |
| folder of .tar files, or one of them           | WebDataset: samples by the name before the first dot           |
| folder of videos, or one video                 | a video each, its caption in the .txt of the same name, if any |

Captions that `worldline caption` added to a dataset, in captions.parquet beside it, belong to any of these.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from worldline.errors import UserError
from worldline.media.clips import INSIDE, local_copy
from worldline.media.read import PICTURE_SUFFIXES, probe
from worldline.records import (
    CAPTIONS,
    MANIFEST,
    Caption,
    Clip,
    Example,
    Media,
    clip_id,
    read_captions,
    read_manifest,
)

ALIASES = {
    "path": ("path", "video", "media_path", "video_path", "file_name", "file", "media", "image", "image_path"),
    "text": ("text", "caption", "cap", "prompt", "description", "captions"),
}
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".gif"})
TABLES = frozenset({".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json"})
MEDIA_SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES
GIVEN = "dataset"  # the model of captions that came with the dataset

Said = Callable[[str, str], None]  # (source, reason) of what cannot be used
Pair = tuple[str, tuple[str, ...]]  # source, captions


def open_dataset(path: str | Path, broken: Said | None = None) -> list[Example]:
    """The clips of a dataset of any of these kinds, with their captions.

    Args:
        broken: gets every source that cannot be read, and why. Without it the first one raises.

    Raises:
        UserError: nothing there, no known kind, a table without a column of paths.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"{path}: no such dataset; see `worldline shards --help` for what can be read")
    said = _said(place)
    if (place / MANIFEST).is_file() or _is_manifest(place):
        folder = place if place.is_dir() else place.parent
        clips = [_found(clip, folder) for clip in read_manifest(place, kept=True)]
        return [Example(clip, tuple(said.get(clip.id, ()))) for clip in clips]
    examples = []
    for source, captions in _pairs(place):
        try:
            clip = clip_of(source)
        except UserError as error:
            if broken is None:
                raise
            broken(source, str(error))
            continue
        given = (Caption(clip.id, text, "given", GIVEN, "", str(number or "")) for number, text in enumerate(captions))
        examples.append(Example(clip, (*given, *said.get(clip.id, ()))))
    if not examples and broken is None:
        raise UserError(f"{path}: holds no videos; give a manifest, a table, a folder of videos or WebDataset tars")
    return examples


def _is_manifest(place: Path) -> bool:
    if place.suffix != ".parquet":
        return False
    import pyarrow.parquet as pq

    return "source_sha256" in pq.ParquetFile(place).schema_arrow.names


def captions_beside(place: Path) -> Path:
    """Where the captions of a dataset lie that were added to it."""
    return (place if place.is_dir() else place.parent) / CAPTIONS


def _said(place: Path) -> dict[str, list[Caption]]:
    said: dict[str, list[Caption]] = {}
    if captions_beside(place).is_file():
        for caption in read_captions(captions_beside(place)):
            said.setdefault(caption.clip, []).append(caption)
    return said


def _found(clip: Clip, folder: Path) -> Clip:
    """A transcoded clip is the whole of its own file, without bars."""
    if not clip.path:
        return clip
    source = str(folder / clip.path)
    return replace(
        clip, source=source, path="", first_frame=0, end_frame=clip.frames, start=0.0, end=clip.seconds, crop=None
    )


def clip_of(source: str) -> Clip:
    """The whole of a file as one clip: its id is that of its bytes. Raises UserError for what is no video."""
    with local_copy(source) as path:
        info = probe(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        container = path.suffix[1:].lower()
    still = path.suffix.lower() in PICTURE_SUFFIXES - {".gif"}
    frames = 1 if still else info.frames or round((info.seconds or 0.0) * info.fps)
    seconds = frames / float(info.fps)
    media = Media(
        container, info.codec, info.pixel_format, 8, info.width, info.height, float(info.fps), False, frames, seconds,
        info.seconds or 0.0, 0, "unknown", "unknown" if info.has_audio else "",
    )  # fmt: skip
    return Clip(clip_id(digest, 0, frames), source, digest, 0, frames, 0.0, seconds, True, media=media)


def _pairs(place: Path) -> Iterator[Pair]:
    if place.is_file():
        if place.suffix == ".tar":
            yield from _of_tar(place)
        elif place.suffix in TABLES:
            yield from _of_table(place)
        else:
            yield from _of_files([place])
        return
    for name in ("metadata.csv", "metadata.jsonl", "videos2caption.json"):
        if (place / name).is_file():
            yield from _of_table(place / name)
            return
    if (place / "videos.txt").is_file() and (place / "prompt.txt").is_file():
        lines = [(place / name).read_text(encoding="utf-8").splitlines() for name in ("videos.txt", "prompt.txt")]
        if len(lines[0]) != len(lines[1]):
            raise UserError(f"{place}: videos.txt has {len(lines[0])} lines, prompt.txt {len(lines[1])}; one for each")
        yield from ((_beside(place, video), (text,)) for video, text in zip(*lines, strict=True))
        return
    tars = sorted(place.glob("*.tar"))
    if tars:
        for tar in tars:
            yield from _of_tar(tar)
        return
    yield from _of_files(sorted(p for p in place.rglob("*") if p.suffix.lower() in MEDIA_SUFFIXES and p.is_file()))


def _of_files(files: Iterable[Path]) -> Iterator[Pair]:
    for file in files:
        beside = file.with_suffix(".txt")
        text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
        yield str(file), (text,) if text else ()


def _of_table(file: Path) -> Iterator[Pair]:
    rows = _rows(file)
    if not rows:
        raise UserError(f"{file}: has no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {kind: _column(names, kind) for kind in ALIASES}
    path = columns["path"]
    if path is None:
        known = ", ".join(ALIASES["path"])
        raise UserError(f"{file}: no column of paths among {', '.join(names)[:200]}; name one of them {known}")
    for number, row in enumerate(rows, 1):
        source = row.get(path)
        if not isinstance(source, str) or not source:
            raise UserError(f"{file}: row {number} has no {path}")
        yield _beside(file.parent, source), _texts(row.get(columns["text"] or ""))


def _column(names: list[str], kind: str) -> str | None:
    lower = {name.lower().strip(): name for name in reversed(names)}
    return next((lower[alias] for alias in ALIASES[kind] if alias in lower), None)


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _beside(folder: Path, source: str) -> str:
    return source if "://" in source or Path(source).is_absolute() else str(folder / source)


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        if file.suffix in (".csv", ".tsv"):
            with file.open(encoding="utf-8-sig", newline="") as lines:
                return list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows: list[dict[str, Any]] = pq.ParquetFile(file).read().to_pylist()
            return rows
        text = file.read_text(encoding="utf-8-sig")
        held = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as {file.suffix[1:]} ({error})") from None
    if not isinstance(held, list) or not all(isinstance(row, dict) for row in held):
        raise UserError(f"{file}: must hold a list of objects, one for each video")
    return held


def _of_tar(tar: Path) -> Iterator[Pair]:
    """WebDataset: members of one sample share the name before the first dot, and lie side by side."""
    samples: dict[str, dict[str, str]] = {}
    texts: dict[str, tuple[str, ...]] = {}
    try:
        with tarfile.open(tar) as held:
            for member in held:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                key, _, kind = name.name.partition(".")
                key = str(name.with_name(key))
                samples.setdefault(key, {})[f".{kind.lower()}"] = member.name
                if kind in ("txt", "json"):
                    data = held.extractfile(member)
                    texts[key] = texts.get(key, ()) + _of_member(kind, data.read() if data else b"")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{tar}: not a sound tar file ({error})") from None
    for key, members in samples.items():
        video = next((members[suffix] for suffix in members if suffix in MEDIA_SUFFIXES), None)
        if video is not None:
            yield f"{tar}{INSIDE}{video}", tuple(dict.fromkeys(texts.get(key, ())))


def _of_member(kind: str, data: bytes) -> tuple[str, ...]:
    text = data.decode("utf-8", "replace")
    if kind == "txt":
        return _texts(text)
    held = json.loads(text)
    column = _column(list(held), "text") if isinstance(held, dict) else None
    return _texts(held[column]) if column else ()
