"""Canvases: what is known of the pixels, of the latent cells, and what the autoencoder is shown instead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.generate.canvas import FADE, Canvas, joined, runs, timeline
from worldline.shapes import Grid

RNG = np.random.default_rng(0)


def clip(frames: int, height: int = 16, width: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


def test_a_timeline_is_its_pieces() -> None:
    a, b = clip(5), clip(4)
    canvas = timeline([a, 8, b])
    assert canvas.frames.shape == (17, 16, 32, 3)
    assert np.array_equal(canvas.frames[:5], a)
    assert np.array_equal(canvas.frames[-4:], b)
    assert canvas.known.all((1, 2)).tolist() == [True] * 5 + [False] * 8 + [True] * 4
    assert timeline([3], (8, 9)).frames.shape == (3, 8, 9, 3)


def test_a_cell_is_known_when_all_its_pixels_are() -> None:
    canvas = timeline([clip(5), 8, clip(4)])
    assert canvas.cells(Grid()).all((1, 2)).tolist() == [True, True, False, False, True]
    known = np.ones((9, 16, 32), bool)
    known[6, 9, 17] = False
    cells = Canvas(clip(9), known).cells(Grid())
    assert (~cells).sum() == 1
    assert not cells[2, 1, 2]
    of_frames = Canvas(clip(9), known).cells_of_frames(Grid())
    assert of_frames[:, 2, 1, 2].tolist() == [True, False, True, True]
    ends = timeline([clip(1), 7, clip(1)]).cells_of_frames(Grid()).all((2, 3))
    assert ends.T.tolist() == [[True] * 4, [False] * 4, [False] * 3 + [True]]
    assert timeline([clip(9)]).cells(Grid(8, 16)).shape == (2, 1, 2)


def test_padding_repeats_the_far_edges() -> None:
    known = np.ones((3, 10, 20), bool)
    known[:, :, 19] = False
    canvas = Canvas(clip(3, 10, 20), known).padded(Grid())
    assert canvas.frames.shape == (5, 16, 32, 3)
    assert np.array_equal(canvas.frames[4, :10, :20], canvas.frames[2, :10, :20])
    assert not canvas.known[:, :, 19:].any()
    assert canvas.known[:, :, :19].all()
    whole = timeline([clip(5)])
    assert whole.padded(Grid()) is whole


def test_unknown_pixels_are_filled_with_the_nearest_known() -> None:
    a, b = clip(1), clip(2)
    filled = timeline([a, 4, b]).filled()
    assert all(np.array_equal(filled[t], a[0]) for t in range(3))
    assert all(np.array_equal(filled[t], b[0]) for t in (3, 4, 5))
    known = np.ones((1, 16, 32), bool)
    known[:, :, 20:] = False
    frame = clip(1)
    out = Canvas(frame, known).filled()
    assert np.array_equal(out[:, :, :20], frame[:, :, :20])
    assert (out[:, :, 20:] == frame[:, :, 19:20]).all()
    blank = timeline([2], (16, 16))
    assert np.array_equal(blank.filled(), blank.frames)


def test_what_is_known_is_put_back_bit_for_bit() -> None:
    known = RNG.random((6, 16, 32)) < 0.5
    canvas, painted = Canvas(clip(6), known), clip(6)
    shown = np.stack(list(canvas.restored([painted[:1], painted[1:5], painted[5:]])))
    assert np.array_equal(shown[known], canvas.frames[known])
    assert np.array_equal(shown[~known], painted[~known])


def test_detail_of_known_frames_fades_into_painted_ones() -> None:
    detail = RNG.integers(-20, 21, (16, 32, 3))
    soft = np.full((30, 16, 32, 3), 100, np.uint8)
    sharp = (soft[0] + detail).astype(np.uint8)
    shown = np.stack(list(joined([soft], {4: sharp}.get))).astype(int)
    assert np.array_equal(shown[4], sharp)
    left = np.abs(shown - 100).mean((1, 2, 3)) / np.abs(detail).mean()
    assert left[4 + FADE + 1 :].max() == 0  # and earlier frames as far as there are any
    assert np.allclose(left[4 : 5 + FADE], np.linspace(1, 0, FADE + 2)[:-1], atol=0.03)
    assert np.allclose(left[:4], left[8:4:-1])

    moved = soft.copy()
    moved[:, :, 16:] = 200  # another thing than what the known frame showed
    moved[0] = soft[0]
    shown = np.stack(list(joined([moved], {0: sharp}.get)))
    assert np.array_equal(shown[1, :, 20:], moved[1, :, 20:])
    assert (shown[1, :, :12] != moved[1, :, :12]).any()

    both = np.stack(list(joined([soft[:6]], {0: sharp, 5: sharp}.get)))  # never more than what was lost
    assert np.array_equal(both, np.stack([sharp] * 6))


def test_frames_come_before_the_whole_is_painted() -> None:
    taken = []

    def painted() -> Iterator[np.ndarray]:
        for t in range(100):
            taken.append(t)
            yield np.zeros((1, 16, 16, 3), np.uint8)

    frames = joined(painted(), {0: np.zeros((16, 16, 3), np.uint8)}.get)
    for t, _ in zip(range(50), frames, strict=False):
        assert len(taken) <= t + FADE + 1


def test_runs() -> None:
    assert runs([True, True, False, True]) == [(0, 2), (3, 4)]
    assert runs([False]) == runs([]) == []


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(UserError, match="uint8"):
        Canvas(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8), bool))
    with pytest.raises(UserError, match="known"):
        Canvas(clip(2), np.zeros((1, 16, 32), bool))
