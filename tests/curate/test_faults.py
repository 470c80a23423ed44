"""Planted faults are quarantined with the right reason; what is only unusual is kept and noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.curate.films import (
    claim_seconds,
    claim_seconds_mp4,
    cut_file,
    overwrite_packets,
    scene,
    write_film,
    write_sound,
)
from worldline.curate.examine import examine
from worldline.curate.plan import CuratePlan
from worldline.curate.probe import FAULTS, REMARKS

pytest.importorskip("scenedetect")
CLIP = scene(1)


def _text(path: Path) -> Path:
    path.write_text("this is no film\n" * 40)
    return path


def _empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def _garbage(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    return path


def _gap(path: Path) -> Path:
    ticks = [i * 42 + 60_000 * (i > 20) for i in range(len(CLIP))]
    return write_film(path, CLIP, ticks=ticks)


def _rich(stream: Any) -> None:
    stream.bit_rate = 4_000_000  # a transport packet holds a small part of a frame


def _hashed(stream: Any) -> None:
    stream.options = {"x265-params": "hash=1:log-level=none"}


TEN_BIT = "yuv422p10le"
BROKEN: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("empty", "mp4", _empty),
    ("not a video", "mp4", _text),
    ("not a video", "mkv", _garbage),
    ("truncated", "mp4", lambda path: cut_file(write_film(path, CLIP))),
    ("truncated", "mkv", lambda path: cut_file(write_film(path, CLIP))),
    ("truncated", "mov", lambda path: cut_file(write_film(path, CLIP, codec="mjpeg", pixel_format="yuvj420p"))),
    ("truncated", "avi", lambda path: cut_file(write_film(path, CLIP, codec="mpeg4"))),
    ("truncated", "webm", lambda path: cut_file(write_film(path, CLIP, codec="libvpx-vp9"))),
    ("truncated", "ts", lambda path: cut_file(write_film(path, CLIP, codec="mpeg2video"))),
    ("no video stream", "mp4", write_sound),
    ("single frame", "mp4", lambda path: write_film(path, CLIP[:1])),
    ("damaged", "mp4", lambda path: overwrite_packets(write_film(path, CLIP))),
    ("damaged", "mkv", lambda path: overwrite_packets(write_film(path, CLIP))),
    ("damaged", "avi", lambda path: overwrite_packets(write_film(path, CLIP, codec="mpeg4"))),
    ("damaged", "ts", lambda path: overwrite_packets(write_film(path, CLIP, codec="mpeg2video", prepare=_rich))),
    ("damaged", "mov", lambda path: overwrite_packets(write_film(path, CLIP, codec="mjpeg", pixel_format="yuvj420p"))),
    ("damaged", "webm", lambda path: overwrite_packets(write_film(path, CLIP, codec="libvpx-vp9", prepare=_rich))),
    ("damaged", "mp4", lambda path: overwrite_packets(write_film(path, CLIP, codec="libsvtav1", prepare=_rich))),
    ("damaged", "mp4", lambda path: overwrite_packets(write_film(path, CLIP, codec="libx265", prepare=_hashed))),
    ("damaged", "mov", lambda path: overwrite_packets(write_film(path, CLIP, codec="prores_ks", pixel_format=TEN_BIT))),
    # Whatever the codec hides, checksums of the container show.
    ("damaged", "mkv", lambda path: overwrite_packets(write_film(path, CLIP, codec="libvpx"))),
    ("damaged", "mkv", lambda path: overwrite_packets(write_film(path, CLIP, codec="libx265", prepare=_hashed), 0.01)),
    ("damaged", "mkv", lambda path: overwrite_packets(write_film(path, CLIP, codec="ffv1"), 0.01)),
    ("wrong duration", "mp4", lambda path: claim_seconds_mp4(write_film(path, CLIP), 10_000)),
    ("wrong duration", "mkv", lambda path: claim_seconds(write_film(path, CLIP), 10_000)),
    ("gap", "mp4", _gap),
    ("one colour", "mp4", lambda path: write_film(path, np.full_like(CLIP, 90))),
]


@pytest.mark.parametrize(
    ("fault", "suffix", "make"), BROKEN, ids=[f"{i}-{name}-{suffix}" for i, (name, suffix, _) in enumerate(BROKEN)]
)
def test_a_fault_is_quarantined_with_its_reason(
    fault: str, suffix: str, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path / f"film.{suffix}")
    rows = examine(path, "film", CuratePlan())
    assert len(rows) == 1
    clip, look = rows[0]
    assert look is None
    assert not clip.kept
    assert clip.reason.startswith(f"probe: {fault}"), clip.reason


def test_every_fault_is_planted() -> None:
    assert {name for name, _, _ in BROKEN} == set(FAULTS)


def _jittered(path: Path) -> Path:
    rng = np.random.default_rng(3)
    return write_film(path, CLIP, ticks=np.cumsum(rng.integers(20, 90, len(CLIP))).tolist())


UNUSUAL: list[tuple[str, Callable[[Path], Path]]] = [
    ("rotated", lambda path: write_film(path, CLIP, rotation=90)),
    ("variable rate", _jittered),
    ("odd size", lambda path: write_film(path, CLIP[:, :95, :127], pixel_format="yuv444p")),
    ("deep colour", lambda path: write_film(path, CLIP, pixel_format="yuv420p10le")),
]


@pytest.mark.parametrize(("remark", "make"), UNUSUAL, ids=[name for name, _ in UNUSUAL])
def test_what_is_unusual_is_kept_and_noted_or_refused(
    remark: str, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path / "film.mp4")
    clips = [clip for clip, _ in examine(path, "film", CuratePlan(stages=()))]
    assert any(clip.kept for clip in clips)
    assert all(remark in clip.decisions[0].reason for clip in clips)
    refused = examine(path, "film", CuratePlan(refuse=(remark,)))
    assert [clip.reason.split(":")[:2] for clip, _ in refused] == [["probe", f" {remark}"]]


def test_every_remark_is_planted() -> None:
    assert {name for name, _ in UNUSUAL} == set(REMARKS)


def test_a_rotated_film_is_measured_upright(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", CLIP, rotation=90)
    media = examine(path, "film", CuratePlan())[0][0].media
    assert media is not None
    assert (media.width, media.height) == (CLIP.shape[1], CLIP.shape[2])


SOUND = [("mp4", "libx264"), ("mkv", "libx265"), ("mkv", "ffv1"), ("avi", "mpeg4"), ("mkv", "libsvtav1")]
SOUND += [("webm", "libvpx"), ("webm", "libvpx-vp9"), ("mkv", "libvpx-vp9"), ("mov", "mjpeg")]


@pytest.mark.parametrize(("suffix", "codec"), SOUND)
def test_a_sound_film_has_no_remark(suffix: str, codec: str, tmp_path: Path) -> None:
    kind = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    film = write_film(tmp_path / f"film.{suffix}", CLIP, codec=codec, prepare=_rich, pixel_format=kind)
    rows = examine(film, "film", CuratePlan())
    assert [clip.kept for clip, _ in rows] == [True], [clip.reason for clip, _ in rows]
    assert rows[0][0].decisions[0].reason == ""
    assert rows[0][0].end_frame == len(CLIP)


def test_a_rotated_film_is_upright_whatever_decodes_it(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4", CLIP, codec="libvpx-vp9", rotation=90, prepare=_rich)
    media = examine(film, "film", CuratePlan(stages=()))[0][0].media
    assert media is not None
    assert (media.width, media.height, media.rotation % 180) == (CLIP.shape[1], CLIP.shape[2], 90)
