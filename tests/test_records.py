"""The records: rows give the same bytes, come back as they were, and captions are only ever added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from worldline.errors import UserError
from worldline.records import (
    Caption,
    Clip,
    Decision,
    Media,
    add_captions,
    clip_id,
    read_captions,
    read_manifest,
    reason_kind,
    write_manifest,
)

pytest.importorskip("pyarrow")

MEDIA = Media("mp4", "h264", "yuv420p", 8, 64, 48, 24.0, False, 30, 1.25, 1.25, 90, "bt709/bt709/limited", "")
KEPT = Clip(
    clip_id("ab", 0, 30), "a.mp4", "ab", 0, 30, 0.0, 1.25, True, "", (Decision("probe", True, "rotated: 90 degrees"),),
    {"motion": 0.25}, {"camera": "static"}, (0, 6, 64, 36), fingerprint="00ff", media=MEDIA,
)  # fmt: skip
DROPPED = Clip(
    clip_id("cd", 0, 0), "b.mp4", "cd", 0, 0, 0.0, 0.0, False, "probe: empty: 0 bytes",
    (Decision("probe", False, "empty: 0 bytes"),),
)  # fmt: skip


def test_rows_come_back_as_they_were_and_their_order_changes_no_byte(tmp_path: Path) -> None:
    digest = write_manifest(tmp_path / "manifest.parquet", [KEPT, DROPPED])
    assert write_manifest(tmp_path / "other.parquet", [DROPPED, KEPT]) == digest
    assert sorted(read_manifest(tmp_path), key=lambda clip: clip.source) == [KEPT, DROPPED]
    assert read_manifest(tmp_path / "other.parquet", kept=False) == [DROPPED]
    assert write_manifest(tmp_path / "other.parquet", [replace(KEPT, kept=False), DROPPED]) != digest
    assert not list(tmp_path.glob(".*"))
    assert KEPT.size == (64, 36)
    assert DROPPED.size == (0, 0)


def test_a_manifest_without_scores_or_rows_can_be_read(tmp_path: Path) -> None:
    for rows in ([DROPPED], []):
        write_manifest(tmp_path / "manifest.parquet", rows)
        assert read_manifest(tmp_path) == rows


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no manifest there"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.parquet").write_text("text")
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="not a file of captions"):
        read_captions(tmp_path / "manifest.parquet")


def test_captions_are_added_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    assert read_captions(path) == []
    first = Caption(KEPT.id, "a red ball falls", "full", "one", "1", sure=0.98)
    add_captions(path, [first])
    other = replace(first, version="2", text="a ball", sure=None)
    assert add_captions(path, [replace(first, text="a blue ball"), other]) == [first, other]
    assert read_captions(path) == [first, other]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("trim: 0.32 s, at least 1 s", "trim: too short"),
        ("duplicates: shows the same as 5e25 of a.mp4", "duplicates: shows the same as"),
        ("sharpness: blurred: sharpness 0.10, at least 0.15", "sharpness: blurred"),
        ("text: text over 4.1% of the picture, at most 1.0%", "text: text over"),
    ],
)
def test_reasons_are_grouped_without_their_figures(reason: str, kind: str) -> None:
    assert reason_kind(reason) == kind
