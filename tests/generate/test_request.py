"""What may be asked for: padding arithmetic, limits, notes, file names."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from worldline.errors import UserError
from worldline.generate.request import (
    MAX_TOKENS,
    SAMPLERS,
    Request,
    frames_of,
    numbered,
    read_bytes,
    read_fps,
    read_size,
    request_of,
    suffixed,
)
from worldline.shapes import Grid


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (64, 64), (101, 77)])
@pytest.mark.parametrize("frames", [1, 2, 5, 16, 17, 18])
def test_the_padded_shape_is_the_smallest_that_divides(size: tuple[int, int], frames: int) -> None:
    padded = Request("a", width=size[0], height=size[1], frames=frames).padded
    assert padded.frames % 4 == 1
    assert padded.width % 16 == padded.height % 16 == 0
    assert 0 <= padded.frames - frames < 4
    assert 0 <= padded.width - size[0] < 16
    assert 0 <= padded.height - size[1] < 16


def test_the_token_limit_names_a_length_that_is_valid() -> None:
    with pytest.raises(UserError, match=r"\((\d+) frames\)$") as caught:
        Request("a", width=1024, height=1024, frames=100_001)
    frames = int(str(caught.value).split("(")[-1].split()[0])
    longest = Request("a", width=1024, height=1024, frames=frames)
    assert longest.tokens.count <= MAX_TOKENS
    with pytest.raises(UserError):
        Request("a", width=1024, height=1024, frames=frames + 1)


def test_notes_only_where_training_is_far() -> None:
    assert Request("a").notes() == []
    assert "640x640" in Request("a", width=640, height=640).notes()[0]
    assert "65 frames" in Request("a", frames=65).notes()[0].replace("at 65", "65 frames")
    assert "cropped" in Request("a", width=60).notes()[0]
    assert Request("a", frames=1).notes() == []


def test_a_request_is_padded_to_the_models_own_grid() -> None:
    request = Request("a", width=40, height=33, frames=6, grid=Grid(8, 16, (1, 2, 2)))
    assert (request.padded.frames, request.padded.height, request.padded.width) == (9, 64, 64)
    assert request.tokens.count == 2 * 2 * 2
    assert "grid" not in request.as_dict()
    with pytest.raises(UserError, match=r"\((\d+) frames\)$") as caught:
        Request("a", width=1024, height=1024, frames=1_000_000, grid=Grid(8, 16))
    frames = int(str(caught.value).split("(")[-1].split()[0])
    assert Request("a", width=1024, height=1024, frames=frames, grid=Grid(8, 16)).tokens.count <= MAX_TOKENS


def test_a_second_scale_needs_a_second_expert() -> None:
    with pytest.raises(UserError, match="--guidance-scale-2: the model has one expert"):
        request_of(Request(""), "a", guidance_scale_2=3.0)
    two = Request("", guidance_scale_2=2.0)
    assert request_of(two, "a").guidance_scale_2 == 2.0
    assert request_of(two, "a", guidance_scale_2=3.0).as_dict()["guidance_scale_2"] == 3.0
    assert request_of(two, "a", guidance_scale=1.0).guidance_scale_2 == 1.0  # 1 turns guidance off
    assert request_of(two, "a", guidance_scale=6.0, guidance_scale_2=3.0).guidance_scale_2 == 3.0
    with pytest.raises(UserError, match="--guidance-scale-2"):
        Request("", guidance_scale_2=101.0)


def test_a_scale_of_what_is_known_needs_a_model_that_is_guided_by_it() -> None:
    with pytest.raises(UserError, match="--guidance-scale-image: the model is not guided"):
        request_of(Request(""), "a", guidance_scale_image=3.0)
    assert request_of(Request("", guidance_scale_image=2.0), "a", guidance_scale_image=0.0).guidance_scale_image == 0.0
    with pytest.raises(UserError, match="--guidance-scale-image"):
        Request("", guidance_scale_image=-1.0)


def test_a_suffix_follows_a_sentence() -> None:
    assert suffixed("a ball", "") == "a ball"
    assert suffixed(" a ball ", "24 FPS.") == "a ball. 24 FPS."
    assert suffixed("a ball.", "24 FPS.") == "a ball. 24 FPS."


def test_fps_is_exact() -> None:
    assert read_fps("30000/1001") == Fraction(30000, 1001)
    assert read_fps("23.976") == Fraction("23.976")
    assert read_fps(16) == 16


def test_lengths() -> None:
    assert frames_of(1, None, Fraction(16), 9) == 17
    assert frames_of(None, 8, Fraction(16), 9) == 8
    assert frames_of(None, None, Fraction(16), 9) == 9


def test_sizes() -> None:
    assert read_size("96x64") == (96, 64)
    assert read_size("48") == (48, 48)


def test_numbers_sort_by_name() -> None:
    names = [path.name for path in numbered(Path("out.mp4"), 11)]
    assert names == sorted(names)
    assert len(set(names)) == 11
    assert numbered(Path("out.mp4"), 1) == [Path("out.mp4")]


def test_the_named_samplers_are_those_that_exist() -> None:
    from worldline.diffusion import samplers

    assert set(SAMPLERS) == set(samplers.SAMPLERS)


def test_amounts_of_memory() -> None:
    sizes = {"8GB": 8e9, "500 mb": 5e8, "6GiB": 6 * 2**30, "2.5G": 2.5e9, "3000000": 3e6}
    assert {text: read_bytes("--max-memory", text) for text in sizes} == sizes
    for text in ("much", "8 apples", "-3GB", "1kB"):
        with pytest.raises(UserError, match="--max-memory"):
            read_bytes("--max-memory", text)
