"""The pass over a video shows the picture that the file holds, whatever its size and its samples."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.media.clips import ball_clip, psnr, write_foreign
from worldline.media.scan import Scan


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv420p10le"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(720, 1280), (540, 960), (362, 642), (364, 644), (1080, 608), (96, 98)],
    ids=lambda side: str(side),
)
def test_small_pictures_are_those_of_the_file(height: int, width: int, pixel_format: str, tmp_path: Path) -> None:
    """Halved on the way or not, upright or long: as if the whole picture had been reduced at once."""
    clip = ball_clip(3, height, width)
    path = write_foreign(tmp_path / "clip.mkv", clip, pixel_format=pixel_format)
    with Scan(path, 90) as scan:
        seen = [shown.picture for shown in scan]
    assert len(seen) == 3
    scale = min(1.0, 90 / min(height, width))
    for frame, picture in zip(clip, seen, strict=True):
        assert picture.shape == (round(height * scale), round(width * scale), 3)
        small = cv2.resize(frame[..., ::-1], picture.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert psnr(small, picture) > 33
        assert np.abs(small.astype(float) - picture).mean((0, 1)).max() < 2.5


def test_pictures_with_checksums_are_finished_before_they_are_checked(tmp_path: Path) -> None:
    """HEVC with frames that no other refers to, whose edges a pass over H.264 leaves as they are."""
    options = {"x265-params": "hash=1:bframes=4:b-pyramid=0:log-level=none", "crf": "30"}
    clip = ball_clip(20, 128, 192)
    path = write_foreign(
        tmp_path / "clip.mp4", clip, "libx265", prepare=lambda stream: setattr(stream, "options", options)
    )
    with Scan(path, 90) as scan:
        assert sum(1 for _ in scan) == 20
        assert scan.damaged == 0
