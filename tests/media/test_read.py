"""Foreign files come out as a player shows them, and bad ones as one clear line."""

from __future__ import annotations

import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.media.clips import ball_clip, grey_clip, psnr, write_foreign
from worldline.errors import UserError
from worldline.media.read import iter_frames, probe, read_image, read_video


def quadrants(height: int = 32, width: int = 48) -> np.ndarray:
    """Red, green over blue, white: every turn and mirror of it is different."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 220, 30, 30
    picture[: height // 2, width // 2 :] = 30, 200, 30
    picture[height // 2 :, : width // 2] = 30, 30, 220
    picture[height // 2 :, width // 2 :] = 240, 240, 240
    return picture


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    # av_display_rotation: the matrix turns the picture counter-clockwise by `degrees`.
    frame = quadrants()
    path = write_foreign(tmp_path / "turned.mp4", np.stack([frame] * 3), rotation=degrees)
    expected = np.rot90(frame, degrees // 90)
    video = read_video(path)
    assert video.frames.shape[1:] == expected.shape
    assert psnr(video.frames[0], expected) > 25
    assert (probe(path).height, probe(path).width) == expected.shape[:2]


def test_variable_frame_rate_takes_the_nearest_timestamp(tmp_path: Path) -> None:
    levels, times = [20, 60, 100, 140, 180], [0, 100, 500, 600, 1000]  # milliseconds
    path = write_foreign(tmp_path / "vfr.mkv", grey_clip(levels), ticks=times)
    video = read_video(path, fps=Fraction(10))
    seen = [min(levels, key=lambda level: abs(level - frame.mean())) for frame in video.frames]
    # 0.3 s is a tie between 0.1 and 0.5: the earlier; 0.8 s one between 0.6 and 1.0.
    assert seen[:11] == [20, 60, 60, 60, 100, 100, 140, 140, 140, 180, 180]


def test_jitter_around_a_constant_rate_neither_drops_nor_repeats(tmp_path: Path) -> None:
    levels = list(range(20, 240, 10))
    times = [round(1000 * i / 30) + (-1) ** i * 5 + 5 for i in range(len(levels))]
    path = write_foreign(tmp_path / "jitter.mkv", grey_clip(levels), ticks=times, rate=30)
    video = read_video(path, fps=Fraction(30))
    assert np.abs(video.frames.mean(axis=(1, 2, 3)) - levels).max() < 3


def test_reading_at_half_the_rate_keeps_every_second_frame(tmp_path: Path) -> None:
    levels = list(range(20, 240, 20))
    path = write_foreign(tmp_path / "ten.mp4", grey_clip(levels), rate=10)
    video = read_video(path, fps=Fraction(5))
    assert np.abs(video.frames.mean(axis=(1, 2, 3)) - levels[::2]).max() < 3


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "size"),
    [
        ("ten_bit.mp4", "libx264", "yuv420p10le", (64, 64)),
        ("odd.mkv", "ffv1", "yuv444p", (35, 51)),
        ("odd_subsampled.mkv", "ffv1", "yuv420p", (35, 51)),
        ("full_range.avi", "mjpeg", "yuvj444p", (48, 64)),
        ("webm.webm", "libvpx-vp9", "yuv420p", (33, 47)),
        ("twelve_bit.mkv", "ffv1", "gbrp12le", (40, 40)),
        ("grey.mkv", "ffv1", "gray", (40, 40)),
    ],
)
def test_pixel_formats(tmp_path: Path, name: str, codec: str, pixel_format: str, size: tuple[int, int]) -> None:
    frames = ball_clip(4, *size)
    if pixel_format == "gray":
        frames = grey_clip([30, 90, 150, 210], *size)
    video = read_video(write_foreign(tmp_path / name, frames, codec, pixel_format))
    assert video.frames.shape == frames.shape
    assert video.fps == 10
    assert psnr(video.frames, frames) > 28


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 16, 4), np.uint8)
    frames[:, :8] = 200, 0, 0, 255  # opaque red above, transparent black below
    video = read_video(write_foreign(tmp_path / "alpha.mov", frames, "png", "rgba"))
    assert (video.frames[:, :8] == (200, 0, 0)).all()
    assert (video.frames[:, 8:] == 255).all()


def test_anamorphic_pixels_become_square(tmp_path: Path) -> None:
    def widen(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)  # type: ignore[attr-defined]

    path = write_foreign(tmp_path / "wide.mp4", ball_clip(3, 32, 32), prepare=widen)
    assert read_video(path).frames.shape == (3, 32, 64, 3)


def test_max_frames_and_iteration_agree(tmp_path: Path, clip: np.ndarray) -> None:
    path = write_foreign(tmp_path / "clip.mp4", clip)
    every = np.stack(list(iter_frames(path)))
    assert len(every) == len(clip)
    np.testing.assert_array_equal(read_video(path, max_frames=3).frames, every[:3])


def test_truncated_file_gives_its_readable_part(tmp_path: Path) -> None:
    whole = write_foreign(tmp_path / "whole.mkv", np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 5 <= len(read_video(cut).frames) < 30


def make_bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "playlist":
        write_foreign(folder / "secret.ts", ball_clip(3), "mpeg2video")
        path.write_text("ffconcat version 1.0\nfile secret.ts\n")
    elif kind == "hls":
        write_foreign(folder / "secret.ts", ball_clip(3), "mpeg2video")
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "no_frames":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 32
            stream.codec_context.open()
            container.start_encoding()
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 48000, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    elif kind == "cut_header":
        whole = write_foreign(folder / "whole.mp4", ball_clip(3))
        path.write_bytes(whole.read_bytes()[:100])
    return path


@pytest.mark.parametrize(
    "kind", ["text", "playlist", "hls", "empty", "folder", "no_frames", "sound", "cut_header", "missing"]
)
def test_bad_file_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    path = make_bad(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        read_video(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_frame_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "big.mp4", ball_clip(2, 128, 128))
    with pytest.raises(UserError, match=r"too large|not a readable"):
        read_video(path, max_pixels=127 * 128)
    assert read_video(path, max_pixels=128 * 128).frames.shape[1:] == (128, 128, 3)


def test_clip_size_is_bounded(tmp_path: Path, clip: np.ndarray) -> None:
    with pytest.raises(UserError, match="max_frames 4 or less"):
        read_video(write_foreign(tmp_path / "long.mp4", clip), max_bytes=4 * 64 * 64 * 3)


def test_image_orientation_alpha_and_depth(tmp_path: Path) -> None:
    picture = quadrants()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture, -1))

    see_through = np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)])
    Image.fromarray(see_through).save(tmp_path / "alpha.png")
    assert (read_image(tmp_path / "alpha.png") == 255).all()

    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(read_image(tmp_path / "deep.png")[..., 1].astype(float) - deep / 257).max() <= 0.5

    Image.fromarray(picture).quantize(8).save(tmp_path / "palette.png")
    assert psnr(read_image(tmp_path / "palette.png"), picture) > 30


def test_picture_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    # 60000 x 60000 in the header, no pixels behind it: decoding would raise another error.
    data = bytearray(_png_bytes(tmp_path))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(UserError, match="too large"):
        read_image(tmp_path / "bomb.png")


def _png_bytes(folder: Path) -> bytes:
    Image.fromarray(quadrants()).save(folder / "small.png")
    return (folder / "small.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_bad_picture_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_truncated_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(_png_bytes(tmp_path)[:90])
    with pytest.raises(UserError, match=r"damaged|not a readable"):
        read_image(tmp_path / "cut.png")


def test_a_still_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "still.png")
    np.testing.assert_array_equal(read_video(tmp_path / "still.png").frames, quadrants()[None])
