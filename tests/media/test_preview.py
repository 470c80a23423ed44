"""Contact sheets show the frames they claim to show."""

from __future__ import annotations

import numpy as np
import pytest

from tests.media.clips import ball_clip, grey_clip
from worldline.media.preview import MARGIN, contact_sheet, thumbnail


def test_frames_are_evenly_spaced_and_unsmoothed() -> None:
    levels = list(range(0, 250, 25))  # 10 frames; 4 columns show 0, 3, 6, 9
    sheet = contact_sheet([grey_clip(levels, 8, 8)], columns_frames=4, scale=3)
    assert sheet.shape == (24 + 2 * MARGIN, 4 * 24 + 3 * MARGIN + 2 * MARGIN, 3)
    centres = sheet[MARGIN + 12, MARGIN + 12 :: 24 + MARGIN][:4, 0]
    assert centres.tolist() == [0, 75, 150, 225]


def test_every_pixel_is_kept() -> None:
    clip = ball_clip(3, 5, 7)
    sheet = contact_sheet([clip], columns_frames=3, scale=2)
    first = sheet[MARGIN : MARGIN + 10 : 2, MARGIN : MARGIN + 14 : 2]
    np.testing.assert_array_equal(first, clip[0])


def test_clips_of_different_size_and_length_share_a_sheet_with_labels() -> None:
    clips = [ball_clip(9, 32, 32), ball_clip(1, 16, 40), ball_clip(2, 33, 17)]
    bare = contact_sheet(clips)
    labelled = contact_sheet(clips, ["short", "a much longer label " * 40, ""])
    assert labelled.shape[1] == bare.shape[1]
    assert labelled.shape[0] > bare.shape[0]
    assert labelled[:20].min() < 100  # the first label left ink


def test_labels_must_match_clips() -> None:
    with pytest.raises(ValueError, match="2 labels for 1 clips"):
        contact_sheet([ball_clip(2)], ["a", "b"])


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(64, 32, (128, 64)), (10, 40, (32, 128)), (500, 1, (128, 1))]
)
def test_thumbnail_keeps_the_aspect(height: int, width: int, expected: tuple[int, int]) -> None:
    clip = grey_clip([0, 90, 0], height, width)
    small = thumbnail(clip, 128)
    assert small.shape == (*expected, 3)
    assert abs(small.mean() - 90) < 1
