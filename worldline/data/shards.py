"""Shards: tar files in WebDataset layout and one Parquet index with byte offsets, so that any sample is one seek away.

    index.parquet     a row per clip: its shape, captions, and where its members lie; dropped clips say why
    shard-00000.tar   <id>.latents.npy  float16 (C, T', H', W'), posterior means before whitening
                      <id>.states.npy   float16 (M, D), text states of its captions one after the other, where the
                                        encoder is frozen; <id>.txt its captions, a line each; <id>.json its source
    plan.json         what decided the bytes

A shard appears under its name when it is whole, its rows beside it first; so work that was stopped goes on with the
shards that are missing. Folders may be addresses that fsspec knows (s3://bucket/data).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldline.errors import UserError

INDEX, PLAN = "index.parquet", "plan.json"
LATENTS, STATES = "latents.npy", "states.npy"


@dataclass(frozen=True)
class Row:
    """One clip of the index. Offsets and sizes are bytes of its shard, 0 where there is none; `reason` says why a clip
    is not in one."""

    id: str
    source: str
    start: float = 0.0  # seconds
    end: float = 0.0
    shard: int = -1
    channels: int = 0
    frames: int = 0  # of the latents (T', H', W')
    height: int = 0
    width: int = 0
    tokens: int = 0
    fps: float = 0.0
    captions: list[str] = field(default_factory=list)
    state_lengths: list[int] = field(default_factory=list)  # tokens of each caption's states
    latents_at: int = 0
    latents_size: int = 0
    states_at: int = 0
    states_size: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Packed:
    """What a clip brings into a shard."""

    row: Row
    latents: np.ndarray  # float16 (C, T', H', W')
    states: np.ndarray | None = None  # float16 (M, D)


class Place:
    """A folder here or behind an address; files appear in it whole."""

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")
        self.remote: Any = None
        if "://" in folder:
            try:
                import fsspec
            except ImportError:
                raise UserError(f"{folder}: addresses need the extra `data`; `pip install 'worldline[data]'`") from None
            self.remote, self.folder = fsspec.url_to_fs(self.folder)
        else:
            os.makedirs(self.folder, exist_ok=True)
        self._held = threading.local()

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def has(self, name: str) -> bool:
        return bool(self.remote.exists(self.path(name)) if self.remote else os.path.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """A whole file."""
        if self.remote:
            return bytes(self.remote.cat_file(self.path(name)))
        with open(self.path(name), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """A whole file under its name at once. Object stores put whole objects; disks rename."""
        if self.remote:
            self.remote.makedirs(self.folder, exist_ok=True)
            self.remote.pipe_file(self.path(name), data)
            return
        part = self.path(f".{name}.{uuid.uuid4().hex[:8]}")
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path(name))
        finally:
            if os.path.exists(part):
                os.unlink(part)

    def span(self, name: str, at: int, size: int) -> bytes:
        """`size` bytes from `at` on: one seek, or one request for a range."""
        if self.remote:
            return bytes(self.remote.cat_file(self.path(name), start=at, end=at + size))
        files: dict[str, int] = self._held.__dict__.setdefault("files", {})
        if name not in files:
            files[name] = os.open(self.path(name), os.O_RDONLY)
        return os.pread(files[name], size, at)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def write_shards(
    folder: str,
    plan: Mapping[str, Any],
    groups: Sequence[Sequence[Any]],
    pack: Callable[[Sequence[Any]], Iterable[Packed | Row]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Writes the shards that `folder` lacks, shard k from `pack(groups[k])`, then the index; returns its rows.

    `plan` is what decides the bytes: shards of another plan in `folder` raise UserError.
    """
    place = Place(folder)
    claim(place, plan)
    rows: list[Row] = []
    for number, group in enumerate(groups):
        part = f"{shard_name(number)}.parquet"
        if not (place.has(shard_name(number)) and place.has(part)):
            tar, own = _tar(pack(group), number)
            place.write(part, to_parquet(own))
            place.write(shard_name(number), tar)
        rows += of_parquet(place.read(part))
        if progress:
            progress(number + 1, len(groups))
    place.write(INDEX, to_parquet(rows))
    return rows


def claim(place: Place, plan: Mapping[str, Any]) -> None:
    """Marks a folder as that of a plan. Raises UserError where it is that of another, naming what differs."""
    if not place.has(PLAN):
        place.write(PLAN, json.dumps(plan, indent=1, sort_keys=True).encode())
    held = json.loads(place.read(PLAN))
    wanted = json.loads(json.dumps(plan))
    for name in sorted(set(held) | set(wanted)):
        if held.get(name) != wanted.get(name):
            found = f"{name} {str(held.get(name))[:80]}, not {str(wanted.get(name))[:80]}"
            raise UserError(f"--out {place.folder}: holds shards with {found}; name another folder or remove it")


def _tar(packed: Iterable[Packed | Row], number: int) -> tuple[bytes, list[Row]]:
    """The bytes of a shard, and its rows with their offsets."""
    buffer = io.BytesIO()
    rows: list[Row] = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> tuple[int, int]:
            info = tarfile.TarInfo(name)  # no time and no owner: the same clips, the same bytes
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            end = buffer.tell()
            return end - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)

        for item in packed:
            if isinstance(item, Row):
                rows.append(item)
                continue
            row = item.row
            latents = add(f"{row.id}.{LATENTS}", _npy(item.latents))
            states = (0, 0) if item.states is None else add(f"{row.id}.{STATES}", _npy(item.states))
            add(f"{row.id}.txt", "\n".join(row.captions).encode())
            add(f"{row.id}.json", json.dumps({"source": row.source, "start": row.start, "end": row.end}).encode())
            c, t, h, w = item.latents.shape
            rows.append(
                dataclasses.replace(
                    row, shard=number, channels=c, frames=t, height=h, width=w, latents_at=latents[0],
                    latents_size=latents[1], states_at=states[0], states_size=states[1],
                )
            )  # fmt: skip
    return buffer.getvalue(), rows


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    kinds |= {"list[str]": pa.list_(pa.string()), "list[int]": pa.list_(pa.int64())}
    schema = pa.schema([(f.name, kinds[str(f.type)]) for f in dataclasses.fields(Row)])
    buffer = io.BytesIO()
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def of_parquet(data: bytes) -> list[Row]:
    """The inverse of `to_parquet`."""
    import pyarrow.parquet as pq

    return [Row(**row) for row in pq.ParquetFile(io.BytesIO(data)).read().to_pylist()]


class Shards:
    """Samples of a folder of shards, by number: those of its index that are in a shard."""

    def __init__(self, folder: str) -> None:
        self.place = Place(folder)
        if not self.place.has(INDEX):
            raise UserError(f"{folder}: no {INDEX} there; write shards with `worldline shards DATASET --out {folder}`")
        self.rows = [row for row in of_parquet(self.place.read(INDEX)) if row.shard >= 0]
        self.plan: dict[str, Any] = json.loads(self.place.read(PLAN))
        if not self.rows:
            raise UserError(f"{folder}: every clip of its index was left out; see `worldline doctor`")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> np.ndarray:
        """(N,) int64, of every sample."""
        return np.array([row.tokens for row in self.rows], np.int64)

    @property
    def sources(self) -> list[str]:
        """The file that every sample comes from."""
        return [row.source for row in self.rows]

    def captions(self, number: int) -> list[str]:
        """All that was said of a sample."""
        return self.rows[number].captions

    def latents(self, number: int) -> np.ndarray:
        """float16 (C, T', H', W')."""
        row = self.rows[number]
        return self._array(row, row.latents_at, row.latents_size)

    def states(self, number: int, caption: int) -> np.ndarray | None:
        """Text states float16 (m, D) of one caption of a sample; None where the encoder is trained along."""
        row = self.rows[number]
        if not row.states_size:
            return None
        start = sum(row.state_lengths[:caption])
        return self._array(row, row.states_at, row.states_size)[start : start + row.state_lengths[caption]]

    def _array(self, row: Row, at: int, size: int) -> np.ndarray:
        data = self.place.span(shard_name(row.shard), at, size)
        try:
            array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            where = self.place.path(shard_name(row.shard))
            raise UserError(f"{where}: does not hold {row.id} at byte {at} ({error}); write the shards again") from None
        return array


def walk(folder: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of every sample, read as WebDataset does: from the tar files alone, without the index."""
    place = Place(folder)
    number = 0
    while place.has(shard_name(number)):
        sample: dict[str, bytes] = {}
        key = ""
        with tarfile.open(fileobj=io.BytesIO(place.read(shard_name(number)))) as tar:
            for member in tar:
                name, _, kind = member.name.partition(".")
                if name != key and sample:
                    yield key, sample
                    sample = {}
                key = name
                data = tar.extractfile(member)
                sample[kind] = data.read() if data else b""
        if sample:
            yield key, sample
        number += 1
