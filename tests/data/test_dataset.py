"""Datasets of every known make hold the same clips and captions, and frames of clips are those of the file."""

from __future__ import annotations

import csv
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from worldline.data.dataset import open_dataset
from worldline.errors import UserError
from worldline.media.clips import read_clips
from worldline.media.read import read_video
from worldline.media.write import write_video
from worldline.records import MANIFEST, Caption, Clip, add_captions, clip_id, read_captions, write_manifest

pa = pytest.importorskip("pyarrow")
TEXTS = {"a": "a red ball", "b": "two blue cubes"}


def video(path: Path, seed: int, frames: int = 9) -> Path:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (frames, 4, 6, 3), np.uint8)
    write_video(path, coarse.repeat(8, 1).repeat(8, 2), 8)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for i, name in enumerate(TEXTS):
        video(tmp_path / "videos" / f"{name}.mp4", i)
    return tmp_path / "videos"


def table(path: Path, columns: tuple[str, str], folder: str) -> None:
    rows = [{columns[0]: f"{folder}{name}.mp4", columns[1]: text, "fps": "8"} for name, text in TEXTS.items()]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))


def check(place: Path) -> None:
    examples = open_dataset(place)
    assert sorted(c.text for e in examples for c in e.captions) == sorted(TEXTS.values())
    assert [e.clip.frames for e in examples] == [9, 9]
    assert len({e.clip.id for e in examples}) == 2
    for clip, frames in read_clips(e.clip for e in examples):
        assert isinstance(frames, np.ndarray), clip
        assert frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("open-sora.csv", ("path", "text")),
        ("ltx.jsonl", ("media_path", "caption")),
        ("ltx.json", ("video", "caption")),
        ("fastvideo.json", ("path", "cap")),
        ("own.parquet", ("file_name", "prompt")),
    ],
)
def test_tables_with_anyones_columns(videos: Path, name: str, columns: tuple[str, str]) -> None:
    table(videos.parent / name, columns, "videos/")
    check(videos.parent / name)


def test_pairs_of_video_and_text(videos: Path) -> None:
    for name, text in TEXTS.items():
        (videos / f"{name}.txt").write_text(text + "\n")
    check(videos)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata(videos: Path, name: str) -> None:
    table(videos / name, ("file_name", "text"), "")
    check(videos)


def test_videos_and_prompts_line_by_line(videos: Path) -> None:
    (videos / "videos.txt").write_text("a.mp4\nb.mp4\n")
    (videos / "prompt.txt").write_text("\n".join(TEXTS.values()))
    check(videos)
    (videos / "prompt.txt").write_text("one")
    with pytest.raises(UserError, match=r"videos\.txt has 2 lines, prompt\.txt 1"):
        open_dataset(videos)


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_webdataset(videos: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "000.tar", "w") as tar:
        for name, text in TEXTS.items():
            tar.add(videos / f"{name}.mp4", f"{name}.mp4")
            said = tmp_path / f"{name}.{kind}"
            said.write_text(text if kind == "txt" else json.dumps({"caption": text}))
            tar.add(said, said.name)
    check(tmp_path / "tars")
    check(tmp_path / "tars" / "000.tar")


def test_a_manifest_with_its_captions(videos: Path, tmp_path: Path) -> None:
    clips = [open_dataset(videos / f"{name}.mp4")[0].clip for name in TEXTS]
    write_manifest(tmp_path / MANIFEST, clips)
    said = [Caption(clip.id, text, "full", "m", "1") for clip, text in zip(clips, TEXTS.values(), strict=True)]
    add_captions(tmp_path / "captions.parquet", said)
    check(tmp_path)
    check(tmp_path / MANIFEST)


def test_captions_are_added_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "captions.parquet"
    first = Caption("x", "a ball", "full", "m", "1", sure=0.5)
    again = Caption("x", "another", "full", "m", "1")
    newer = Caption("x", "a red ball", "full", "m", "2", "say it")
    add_captions(file, [first])
    assert add_captions(file, [again, newer]) == [first, newer]
    assert read_captions(file) == [first, newer]


def test_tables_that_cannot_be_used_say_why(videos: Path, tmp_path: Path) -> None:
    table(tmp_path / "odd.csv", ("clipname", "text"), "videos/")
    with pytest.raises(UserError, match=r"no column of paths among clipname, text, fps; name one of them path, video"):
        open_dataset(tmp_path / "odd.csv")
    table(tmp_path / "gone.csv", ("path", "text"), "nowhere/")
    with pytest.raises(UserError, match="no such file"):
        open_dataset(tmp_path / "gone.csv")
    broken: list[str] = []
    assert open_dataset(tmp_path / "gone.csv", lambda source, reason: broken.append(reason)) == []
    assert len(broken) == 2
    with pytest.raises(UserError, match="no such dataset"):
        open_dataset(tmp_path / "none")


def test_clips_of_a_file_are_its_frames(tmp_path: Path) -> None:
    path = str(video(tmp_path / "long.mp4", 5, 40))
    whole = read_video(path).frames

    def part(first: int, end: int, crop: tuple[int, int, int, int] | None = None) -> Clip:
        return Clip(clip_id("s", first, end), path, "s", first, end, first / 8, end / 8, True, crop=crop)

    clips = [part(30, 40), part(0, 7), part(12, 20, (8, 0, 32, 16)), part(39, 60), part(200, 210)]
    read = {clip.first_frame: frames for clip, frames in read_clips(clips)}
    assert np.array_equal(read[0], whole[:7])
    assert np.array_equal(read[12], whole[12:20, :16, 8:40])
    assert isinstance(read[200], UserError)
    read = {c.first_frame: f for c, f in read_clips(clips[:3], lambda n: [0, n - 1], lambda clip: Fraction(4))}
    assert np.array_equal(read[12][:, :16, :32], whole[[12, 18], :16, 8:40])
