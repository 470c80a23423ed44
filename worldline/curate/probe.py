"""What is wrong or unusual with a file, from its header, its structure on disk and the one pass over its frames."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from worldline.media.scan import Scan

# A file with one of these is quarantined: what it holds is not what it claims.
FAULTS = (
    "empty",
    "not a video",
    "truncated",
    "no video stream",
    "single frame",
    "damaged",
    "wrong duration",
    "gap",
    "one colour",
)
# These are read correctly and only noted; a recipe may refuse them too.
REMARKS = ("rotated", "variable rate", "odd size", "deep colour")
LONGEST_GAP = 30.0  # seconds without a frame
RATE_JITTER = 0.25  # of the usual step between frames: beyond, a rate is variable
FLAT = 1.0  # levels of 255: the spread of a picture that shows one colour


@dataclass(frozen=True)
class Found:
    """One fault or remark: its name in FAULTS or REMARKS, and what was seen."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


def unreadable(path: Path, complaint: str) -> Found:
    """Why a file that could not be opened, or from which no frame came, cannot be used."""
    if path.stat().st_size == 0:
        return Found("empty", "0 bytes")
    if "no video stream" in complaint:
        return Found("no video stream", "sound or data alone")
    missing = _cut_short(path)
    if missing:
        return Found("truncated", missing)
    with path.open("rb") as file:
        start = file.read(512)
    text = start.strip() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)
    return Found("not a video", "holds text" if text else complaint)


def findings(path: Path, scan: Scan, flat: bool) -> list[Found]:
    """Faults, then remarks, after the pass over the frames; `flat` says that every picture showed one colour."""
    header, times = scan.header, np.asarray(scan.times)
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else float(1 / header.rate)
    out = []
    missing = _cut_short(path) or _fewer(scan, usual)
    if missing:
        out.append(Found("truncated", missing))
    if len(times) == 1:
        out.append(Found("single frame", ""))
    torn = 0 if missing else _torn(path)
    if scan.damaged:
        out.append(Found("damaged", f"{scan.damaged} packets or frames do not decode cleanly"))
    elif torn:
        out.append(Found("damaged", f"{torn} clusters do not have their checksum"))
    held = times[-1] + min(scan.end - times[-1], LONGEST_GAP)
    claimed = max(header.seconds, _index_seconds(path))
    if claimed > 10 * held + 1:
        out.append(Found("wrong duration", f"claims {claimed:.0f} s, holds {held:.1f} s"))
    if len(steps) and steps.max() > LONGEST_GAP:
        out.append(Found("gap", f"no frame for {steps.max():.0f} s"))
    if flat and len(times) > 1:
        out.append(Found("one colour", "every picture is flat"))
    return out + list(_remarks(scan, steps, usual))


def _remarks(scan: Scan, steps: np.ndarray, usual: float) -> Iterator[Found]:
    width, height = scan.size
    if scan.rotation:
        yield Found("rotated", f"{scan.rotation} degrees")
    if variable(steps, usual):
        yield Found("variable rate", f"{steps.min() * 1000:.0f} to {steps.max() * 1000:.0f} ms between frames")
    if width % 2 or height % 2:
        yield Found("odd size", f"{width}x{height}")
    if scan.header.bit_depth > 8:
        yield Found("deep colour", f"{scan.header.bit_depth} bit")


def variable(steps: np.ndarray, usual: float) -> bool:
    """Whether more than one step in a hundred differs from the usual one by more than its rounding."""
    if len(steps) < 2:
        return False
    return bool(np.mean(np.abs(steps - usual) > RATE_JITTER * usual) > 0.01)


def _fewer(scan: Scan, usual: float) -> str:
    """What is missing against the header: frames it counts, or seconds it claims within reason."""
    header, held = scan.header, len(scan.times)
    if scan.cut_short:
        return f"ends in the middle of a packet after {scan.end:.1f} s"
    if header.frames > 1.05 * held + 2 and not scan.damaged and header.frames * usual < 10 * scan.end + 1:
        return f"holds {held} of {header.frames} frames"
    own = header.video_seconds
    if 0.9 * own - 1 > scan.end and own <= 10 * scan.end + 1:
        return f"holds {scan.end:.1f} of {own:.1f} s"
    return ""


# ---- the structure on disk -------------------------------------------------------------------------


def _cut_short(path: Path) -> str:
    """What the container's own sizes say is missing at the end; empty for a whole file and for other formats."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_end(file, size)
        if start[:4] == b"\x1a\x45\xdf\xa3":
            return _beyond(_segment_end(file), size)
        if start[:4] == b"RIFF":
            return _beyond(struct.unpack("<I", start[4:8])[0] + 8, size)
        file.seek(188)
        if start[:1] == b"G" and file.read(1) == b"G" and size % 188:
            return f"ends within a packet of {size % 188} of 188 bytes"
    return ""


def _beyond(end: int, size: int) -> str:
    return f"{size} of {end} bytes" if end > size else ""


def _boxes_end(file: BinaryIO, size: int) -> str:
    """Walks the top-level boxes (ISO 14496-12, 4.2); a film without its index was never finished."""
    offset, kinds = 0, set()
    while offset + 8 <= size:
        file.seek(offset)
        length, kind = struct.unpack(">I4s", file.read(8))
        kinds.add(kind)
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length == 0:  # to the end of the file
            break
        if length < 8 or offset + length > size:
            return _beyond(offset + length, size) or "a box of no size"
        offset += length
    return "" if b"moov" in kinds else "its index (moov) is missing"


def _index_seconds(path: Path) -> float:
    """The duration that the index of an mp4 claims (ISO 14496-12, 8.2.2), which decoders do not look at; else 0."""
    with path.open("rb") as file:
        start = _at(file, 0, 8)
        offset = 0 if start[4:] == b"ftyp" else -1
        while offset >= 0 and len(head := _at(file, offset, 16)) == 16:
            length, kind, long = struct.unpack(">I4sQ", head)
            if kind == b"moov":
                return _movie_seconds(_at(file, offset + 8, 128))
            offset += long if length == 1 else length or -1 - offset
    return 0.0


def _movie_seconds(movie: bytes) -> float:
    """Seconds in the movie header at the beginning of an index."""
    body = movie[movie.find(b"mvhd") + 4 :]
    if b"mvhd" not in movie or len(body) < 32:
        return 0.0
    # Version and flags, two dates, then time scale and duration; version 1 has 64 bits for dates and duration.
    scale, duration = struct.unpack_from(">20xIQ", body) if body[0] == 1 else struct.unpack_from(">12xII", body)
    unknown = duration in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
    return 0.0 if unknown or not scale else duration / scale


def _at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _segment_end(file: BinaryIO) -> int:
    """Where a Matroska segment ends (RFC 8794, 4 and 5); 0 if it does not say, as live streams do not."""
    for _ in range(2):  # the EBML header, then the segment
        first = file.read(4)[0:4]
        if len(first) < 4:
            return 0
        length, known = _varint(file)
        if first == b"\x18\x53\x80\x67":
            return file.tell() + length if known else 0
        file.seek(length, 1)
    return 0


def _torn(path: Path) -> int:
    """How many clusters of a Matroska file do not have the CRC-32 that stands in them (RFC 9559, 6.2), where one does.

    FFmpeg writes one into each, so that damage shows whatever the codec; WebM files have none.
    """
    found, size = 0, path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return 0
        file.seek(_varint(file)[0], 1)
        file.seek(4, 1)
        _varint(file)
        while len(name := file.read(1)) == 1:
            name += file.read(max(0, 8 - name[0].bit_length()))  # one to four bytes
            length, known = _varint(file)
            start = file.tell()
            if not known or start + length > size:
                break
            if name == b"\x1f\x43\xb6\x75" and file.read(2) == b"\xbf\x84":
                wanted = int.from_bytes(file.read(4), "little")
                found += _crc32(file, length - 6) != wanted
            file.seek(start + length)
    return found


def _crc32(file: BinaryIO, left: int) -> int:
    value = 0
    while left > 0 and (chunk := file.read(min(left, 1 << 20))):
        value, left = zlib.crc32(chunk, value), left - len(chunk)
    return value


def _varint(file: BinaryIO) -> tuple[int, bool]:
    """A variable-size integer, and whether it is known (not all ones)."""
    first = (file.read(1) or b"\xff")[0]
    extra = 8 - first.bit_length() if first else 8
    value = first & (0x7F >> extra)
    for byte in file.read(extra):
        value = value << 8 | byte
    return value, value != (1 << 7 * (extra + 1)) - 1
