"""The contract between the data stages: one frozen record per clip, and the Parquet manifest that holds them.

A manifest has a row for every clip, kept and dropped, so that what happened to each second of footage can be read from
it: scores, decisions in the order in which they were made, reasons, and the bytes that the clip came from. The same
rows give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldline.errors import UserError

MANIFEST = "manifest.parquet"  # its name in the folder that `worldline curate` writes
CAPTIONS = "captions.parquet"  # beside it, written by `worldline caption`
SURE = 0.95  # mean probability a word below which the shipped captioner looks at something that it does not know
Crop = tuple[int, int, int, int]  # left, top, width, height in pixels as shown


@dataclass(frozen=True)
class Decision:
    """What one stage decided about a clip; `reason` is one line for people, empty where it was kept without remark."""

    stage: str
    kept: bool
    reason: str = ""


@dataclass(frozen=True)
class Media:
    """What a file says of itself. Width, height and seconds are as shown, not as claimed, where frames were decoded."""

    container: str
    codec: str
    pixel_format: str
    bit_depth: int
    width: int  # as shown: rotation and pixel shape applied
    height: int
    fps: float  # the constant rate at which `media.read` reads the file
    variable_rate: bool
    frames: int  # decoded
    seconds: float  # decoded
    claimed_seconds: float  # 0 where the header does not say
    rotation: int  # clockwise degrees that a player applies
    colour: str  # matrix/transfer/range as the file names them, "unknown" where it does not
    audio: str  # codec, rate and channels of the first audio stream; empty where there is none


@dataclass(frozen=True)
class Clip:
    """A stretch of one file: `frames` of the file's own in display order, and the same in seconds after its first.

    The clips of a file tile it: every frame lies in exactly one row. A file that cannot be used has one row, which
    is dropped and says why; its range is empty where nothing could be decoded, and so is `media` where not even the
    header could be read.
    """

    id: str  # clip_id(source_sha256, first_frame, end_frame)
    source: str  # path or address, as it was given
    source_sha256: str  # of the file's bytes
    first_frame: int
    end_frame: int  # exclusive
    start: float  # seconds
    end: float
    kept: bool
    reason: str = ""  # why it was dropped: "stage: reason"
    decisions: tuple[Decision, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # scores that are words, such as the motion of the camera
    crop: Crop | None = None  # the picture without its bars, where it has some
    duplicate_of: str = ""  # id of the clip that was kept in its place
    fingerprint: str = ""  # hex, compared by Hamming distance
    path: str = ""  # of the transcoded clip, relative to the manifest, where that was asked for
    media: Media | None = None

    @property
    def frames(self) -> int:
        return self.end_frame - self.first_frame

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels as shown, without bars."""
        if self.crop:
            return self.crop[2], self.crop[3]
        return (self.media.width, self.media.height) if self.media else (0, 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def reason_kind(reason: str) -> str:
    """`stage: kind` of the reason why a clip was dropped, without the figures that differ from clip to clip."""
    stage, _, rest = reason.partition(": ")
    kind = rest.split(":")[0].split(" of ")[0]
    words = [word for word in kind.split() if not any(mark.isdigit() for mark in word)]
    return f"{stage}: {' '.join(words) if stage != 'trim' else 'too short'}"


def clip_id(source_sha256: str, first_frame: int, end_frame: int) -> str:
    """96 bits in hex, from the source's bytes and the range alone: the same clip has the same name everywhere."""
    return hashlib.sha256(f"{source_sha256}/{first_frame}-{end_frame}".encode()).hexdigest()[:24]


def clip_from_dict(row: dict[str, Any]) -> Clip:
    """The inverse of `Clip.as_dict`; what Parquet returns for absent scores is left out again."""
    row = dict(row)
    for name in ("scores", "labels"):
        row[name] = {key: value for key, value in (row.get(name) or {}).items() if value is not None}
    row["decisions"] = tuple(Decision(**decision) for decision in row.get("decisions") or ())
    row["crop"] = tuple(row["crop"]) if row.get("crop") else None
    row["media"] = Media(**row["media"]) if row.get("media") else None
    return Clip(**row)


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> str:
    """Writes the rows, sorted by id and source, atomically; returns the SHA-256 of the file.

    Raises UserError when the extra `data` is not installed.
    """
    pa, pq = _arrow()
    rows = sorted((clip.as_dict() for clip in clips), key=lambda row: (row["id"], row["source"]))
    schema = pa.schema([(name, kind) for name, kind in _columns(pa, rows).items() if kind is not None])
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd")
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return digest


def read_manifest(path: str | Path, kept: bool | None = None) -> list[Clip]:
    """The rows of a manifest, or of the folder that holds it; `kept` asks for only those kept, or only those dropped.

    Raises UserError when the file is missing or no manifest, or the extra `data` is not installed.
    """
    pa, pq = _arrow()
    target = Path(path)
    target = target / MANIFEST if target.is_dir() else target
    if not target.is_file():
        raise UserError(f"{path}: no manifest there; write one with `worldline curate SRC... --out DIR`")
    try:
        rows = pq.ParquetFile(target).read().to_pylist()
        clips = [clip_from_dict(row) for row in rows]
    except (pa.ArrowException, TypeError, KeyError) as error:
        raise UserError(f"{target}: not a manifest of clips; write one with `worldline curate`") from error
    return [clip for clip in clips if kept is None or clip.kept is kept]


@dataclass(frozen=True)
class Caption:
    """What one captioner said of a clip. Captions are only ever added: `model`, `version` and `prompt` tell who said
    it, and to what request."""

    clip: str  # Clip.id
    text: str
    style: str  # "short", "full", or what the request asked for
    model: str
    version: str
    prompt: str = ""  # the request, where the captioner takes one
    sure: float | None = None  # mean probability of its words, where the captioner knows

    @property
    def origin(self) -> tuple[str, str, str, str, str]:
        """Two captions of one origin would say the same."""
        return self.clip, self.style, self.model, self.version, self.prompt


@dataclass(frozen=True)
class Example:
    """A clip and all that was said of it, in the order in which it was added."""

    clip: Clip
    captions: tuple[Caption, ...] = ()


def read_captions(path: str | Path) -> list[Caption]:
    """The captions of a file, none where there is no file. Raises UserError for a file of another kind."""
    pa, pq = _arrow()
    if not Path(path).is_file():
        return []
    try:
        return [Caption(**row) for row in pq.ParquetFile(path).read().to_pylist()]
    except (pa.ArrowException, TypeError) as error:
        raise UserError(f"{path}: not a file of captions; give another --out") from error


def add_captions(path: str | Path, captions: Iterable[Caption]) -> list[Caption]:
    """Adds captions to a file, atomically, and returns all that it then holds; one of a known origin is left out."""
    pa, pq = _arrow()
    held = read_captions(path)
    known = {caption.origin for caption in held}
    for caption in captions:
        if caption.origin not in known:
            known.add(caption.origin)
            held.append(caption)
    kinds = {"str": pa.string(), "float | None": pa.float64()}
    schema = pa.schema([(f.name, kinds[str(f.type)]) for f in dataclasses.fields(Caption)])
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(c) for c in held], schema=schema), part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return held


def _columns(pa: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Column -> Arrow type, None for a column without content: Parquet holds no struct without fields."""
    kinds = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}

    def struct(record: type) -> Any:
        return pa.struct([(f.name, kinds[str(f.type)]) for f in dataclasses.fields(record)])

    def union(name: str, kind: Any) -> Any:
        keys = sorted({key for row in rows for key in row[name]})
        return pa.struct([(key, kind) for key in keys]) if keys else None

    special = {
        "decisions": pa.list_(struct(Decision)),
        "scores": union("scores", pa.float64()),
        "labels": union("labels", pa.string()),
        "crop": pa.list_(pa.int64()),
        "media": struct(Media),
    }
    return {f.name: special[f.name] if f.name in special else kinds[str(f.type)] for f in dataclasses.fields(Clip)}


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("manifests need the extra `data`; install it with `pip install 'worldline[data]'`") from None
    return pyarrow, pyarrow.parquet
