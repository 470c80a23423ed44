"""Shape arithmetic: snapping holds, counts agree with a loop, bad input is one clear line."""

from __future__ import annotations

import math

import pytest

from worldline.errors import UserError
from worldline.shapes import LatentShape, TokenShape, VideoShape, frames_for, parse_size


@pytest.mark.parametrize("frames", [1, 2, 5, 16, 17, 18])
@pytest.mark.parametrize("side", [1, 15, 16, 17, 64, 65])
@pytest.mark.parametrize(("temporal", "spatial"), [(4, 16), (8, 32), (1, 8)])
def test_snapped_is_the_least_shape_that_divides(frames: int, side: int, temporal: int, spatial: int) -> None:
    got = VideoShape(frames, side, side).snapped(temporal, spatial)
    assert got.frames == next(f for f in range(frames, frames + temporal) if (f - 1) % temporal == 0)
    assert got.height == got.width == next(s for s in range(side, side + spatial) if s % spatial == 0)
    assert got.snapped(temporal, spatial) == got


def test_default_clip() -> None:
    latent = VideoShape(17, 64, 96).latent()
    assert latent == LatentShape(5, 8, 12)
    assert latent.tokens() == TokenShape(5, 4, 6)
    assert latent.tokens().count == 120
    assert VideoShape(1, 64, 64).latent().frames == 1, "an image is a video of one frame"
    assert LatentShape(5, 7, 9).tokens((2, 2, 4)) == TokenShape(3, 4, 3)


def test_empty_shape_is_refused() -> None:
    with pytest.raises(UserError, match="nearest valid is 1 frames of 3x1"):
        VideoShape(0, -4, 3)


def test_parse_size() -> None:
    assert parse_size("64x48") == (64, 48), "width comes first, as in every video tool"
    assert parse_size(" 64 X 48 ") == (64, 48)
    assert parse_size("7x5") == (7, 5), "odd sizes are valid: they are padded and cropped"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("0x64", "1x64"), ("-1x-1", "1x1"), ("100000x100000", "4096x4096"), ("64x9999", "64x4096")],
)
def test_size_out_of_range_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"--size .* {nearest}$"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "64", "64x", "x64", "64x64x64", "1e3x64", "big", "6\n4x64", "9" * 99 + "x1"])
def test_size_that_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="--size") as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


def test_frames_for() -> None:
    assert frames_for(1, 16) == 17
    assert frames_for(0, 16) == 1
    assert frames_for(2.5, 24) == 61


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, -math.inf, 1e9])
def test_seconds_out_of_range(seconds: float) -> None:
    with pytest.raises(UserError, match="--seconds"):
        frames_for(seconds, 16)


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, 1e6])
def test_fps_out_of_range(fps: float) -> None:
    with pytest.raises(UserError, match="--fps"):
        frames_for(1, fps)
