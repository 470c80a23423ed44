"""What is written can be read back exactly where the format allows, or is not written at all."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.media.clips import ball_clip, psnr
from worldline.errors import UserError
from worldline.media import write
from worldline.media.provenance import provenance, read_provenance
from worldline.media.read import read_image, read_video
from worldline.media.write import check_writable, write_clip, write_gif, write_image, write_video, write_webp


@pytest.mark.parametrize("size", [(64, 64), (65, 63), (64, 63), (33, 128), (1, 1), (2, 3)])
@pytest.mark.parametrize("frames", [1, 9])
def test_mp4_round_trip_keeps_size_count_and_look(tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    clip = ball_clip(frames, *size)
    write_video(tmp_path / "a.mp4", clip, 16)
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == clip.shape
    assert video.fps == 16
    if min(size) >= 32:
        assert psnr(video.frames, clip) > 35


@pytest.mark.parametrize("fps", [16, Fraction(30000, 1001), Fraction(24000, 1001), 23.976, 60, 0.5, 1000])
def test_frame_rate_is_exact(tmp_path: Path, fps: float | Fraction) -> None:
    write_video(tmp_path / "a.mp4", ball_clip(7, 16, 16), fps)
    video = read_video(tmp_path / "a.mp4")
    assert video.fps == Fraction(fps).limit_denominator(100_000)
    assert len(video.frames) == 7


def test_colours_survive_without_a_cast(tmp_path: Path) -> None:
    # A wrong matrix (BT.601 read as BT.709) moves saturated colours by more than 10 levels.
    colours = np.array([[220, 40, 40], [40, 180, 60], [40, 70, 220], [240, 220, 50], [128, 128, 128]], np.uint8)
    clip = np.repeat(colours[None, None], 32, axis=1).repeat(16, axis=2).repeat(3, axis=0)  # (3, 32, 80, 3)
    write_video(tmp_path / "a.mp4", clip, 16)
    centres = read_video(tmp_path / "a.mp4").frames[1, 16, 8::16]
    assert np.abs(centres.astype(int) - colours).max() <= 3


def test_mp4_is_tagged_fast_to_start_and_holds_no_clock(tmp_path: Path, clip: np.ndarray) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, clip, 16)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(video=0))
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", len(clip))
        assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)
        assert "creation_time" not in {**container.metadata, **stream.metadata}


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, suffix: str) -> None:
    clip = ball_clip(17, 96, 96)
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write_clip(path, clip, 16, metadata={"prompt": "a red ball", "seed": 3})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_bytes_do_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    clip, rng, junk, seen = ball_clip(17, 66, 64), np.random.default_rng(0), [], set()
    for _ in range(15):

        def noisy() -> Iterator[np.ndarray]:
            for frame in clip:
                junk.extend(rng.integers(0, 255, int(rng.integers(100, 80_000)), np.uint8) for _ in range(3))
                del junk[: len(junk) - 30]
                yield frame

        write_video(tmp_path / "a.mp4", noisy(), 16)
        seen.add((tmp_path / "a.mp4").read_bytes())
    assert len(seen) == 1


def test_iterator_and_array_give_the_same_file(tmp_path: Path, clip: np.ndarray) -> None:
    write_video(tmp_path / "array.mp4", clip, 16)
    write_video(tmp_path / "stream.mp4", iter(clip), 16)
    assert (tmp_path / "array.mp4").read_bytes() == (tmp_path / "stream.mp4").read_bytes()


@pytest.mark.parametrize(
    "prompt", ["a red ball", "ein roter Ball läuft ＃ 球\n{}", 'nul \0 "quoted" \\', "x" * 100_000]
)
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".png", ".jpg"])
def test_provenance_survives(tmp_path: Path, prompt: str, suffix: str, clip: np.ndarray) -> None:
    if suffix == ".jpg" and len(prompt) > 60_000:
        pytest.skip("a JPEG segment holds 64 kB")
    record = provenance(prompt, seed=7, model_hash="ab" * 32, steps=20)
    path = tmp_path / f"a{suffix}"
    if suffix in (".png", ".jpg"):
        write_image(path, clip[0], metadata=record)
    else:
        write_clip(path, clip, 16, metadata=record)
    assert record.items() <= read_provenance(path).items()


def test_file_without_a_record_has_an_empty_one(tmp_path: Path, clip: np.ndarray) -> None:
    write_image(tmp_path / "a.png", clip[0])
    assert read_provenance(tmp_path / "a.png") == {}


@pytest.mark.parametrize(("writer", "suffix", "floor"), [(write_gif, ".gif", 30), (write_webp, ".webp", 30)])
def test_animated_pictures(tmp_path: Path, writer: object, suffix: str, floor: float) -> None:
    clip = ball_clip(16)
    path = tmp_path / f"a{suffix}"
    writer(path, clip, 16)  # type: ignore[operator]
    video = read_video(path)
    assert video.frames.shape == clip.shape
    assert abs(float(video.fps) - 16) < 0.1
    assert psnr(video.frames, clip) > floor


def test_png_is_lossless(tmp_path: Path, clip: np.ndarray) -> None:
    write_image(tmp_path / "a.png", clip[0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), clip[0])


# ---- failures leave nothing behind ---------------------------------------------------------------------


def test_failing_source_leaves_the_old_file(tmp_path: Path, clip: np.ndarray) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def broken() -> Iterator[np.ndarray]:
        yield from clip[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, broken(), 16)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files makes every write beyond it fail, as on a full disk, at any offset."""
    clip = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), np.uint8)
    write_clip(tmp_path / f"whole{suffix}", clip, 16)
    size = (tmp_path / f"whole{suffix}").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1, 100, size // 4, size // 2, size - 1000, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(UserError, match="output: cannot write") as caught:
                write_clip(tmp_path / f"a{suffix}", clip, 16)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == [f"whole{suffix}"]


def test_disk_that_fills_at_the_flush(tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_image(tmp_path / "a.png", clip[0])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "output"),
        ("nul\0.mp4", "NUL"),
        ("missing/a.mp4", "does not exist"),
        ("folder", "is a folder"),
        ("a.avi", "use a.mp4"),
        ("a", "use a.mp4"),
        ("x" * 300 + ".mp4", "cannot write"),
        ("taken.mp4", "taken-2.mp4"),
        ("pipe.mp4", "not a regular file"),
    ],
)
def test_unwritable_output_is_found_before_any_work(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken.mp4").touch()
    (tmp_path / "taken-1.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=words) as caught:
        check_writable(f"{tmp_path}/{name}" if name else "", overwrite=name == "pipe.mp4")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_writable_output_passes_and_leaves_no_trace(tmp_path: Path) -> None:
    assert check_writable(tmp_path / "a.mp4", overwrite=False) == tmp_path / "a.mp4"
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "a.mp4")


def test_link_stays_a_link_and_permissions_are_plain(tmp_path: Path, clip: np.ndarray) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    write_video(tmp_path / "link.mp4", clip, 16)
    assert (tmp_path / "link.mp4").is_symlink()
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE((tmp_path / "real.mp4").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 0, 8, 3), np.uint8),
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],
        [None],
    ],
)
def test_wrong_frames_are_named(tmp_path: Path, frames: object) -> None:
    with pytest.raises(UserError, match="frames: "):
        write_video(tmp_path / "a.mp4", frames, 16)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9, 0.001])
def test_wrong_frame_rate_is_named(tmp_path: Path, fps: float) -> None:
    with pytest.raises(UserError, match="fps: "):
        write_video(tmp_path / "a.mp4", ball_clip(2, 8, 8), fps)
    assert os.listdir(tmp_path) == []
