"""Stages against what is known exactly: cuts that were made, bars that were added, blur, light and motion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.curate.films import scene, write_film
from worldline.curate.duplicates import Duplicates, Print
from worldline.curate.examine import examine
from worldline.curate.filters import Sharpness
from worldline.curate.plan import CuratePlan
from worldline.curate.shots import Shots, Trim
from worldline.curate.stage import Look
from worldline.records import Clip

cv2 = pytest.importorskip("cv2")
SCENES = [scene(seed) for seed in range(12)]


def shots(film: np.ndarray, path: Path) -> list[tuple[int, int, str]]:
    rows = examine(write_film(path, film), "film", CuratePlan(stages=(), trim=Trim(0, 1000)))
    return [(clip.first_frame, clip.end_frame, clip.reason) for clip, _ in rows]


def test_cuts_between_scenes_are_found(tmp_path: Path) -> None:
    found = shots(np.concatenate(SCENES), tmp_path / "film.mp4")
    assert found == [(36 * i, 36 * (i + 1), "") for i in range(len(SCENES))]


def test_scores_of_cuts_are_those_of_the_library() -> None:
    scenedetect = pytest.importorskip("scenedetect")
    detectors = pytest.importorskip("scenedetect.detectors")
    finder, library = Shots().begin(24.0), detectors.AdaptiveDetector(min_scene_len=0, min_content_val=10.0)
    cuts = []
    for i, picture in enumerate(np.concatenate(SCENES[:3])):
        finder.see(picture)
        cuts += library.process_frame(scenedetect.FrameTimecode(i, 24.0), picture)
        assert finder.detector._frame_score == pytest.approx(library._frame_score, rel=1e-9)
    assert finder.cuts == [cut.frame_num for cut in cuts] == [36, 72]


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_sharpness_is_what_its_paper_says(sigma: float) -> None:
    """Crete et al. 2007, eq. 2-6, with a box of nine, written down literally; away from the edges of the picture."""
    luma = SCENES[7][0].mean(-1).round().astype(np.uint8)
    luma = cv2.GaussianBlur(luma, (0, 0), sigma) if sigma else luma
    look = Look(0, 0.0, luma, luma, None, 0.0, luma.shape[::-1], lambda: luma, lambda side: luma)
    smooth = cv2.GaussianBlur(luma.astype(float), (3, 3), 0)
    shares = []
    for picture in (smooth, smooth.T):
        box = np.stack([picture[i : len(picture) - 8 + i] for i in range(9)]).mean(0)
        sharp, soft = np.abs(np.diff(picture[4:-4], axis=0)), np.abs(np.diff(box, axis=0))
        shares.append(np.maximum(sharp - soft, 0).sum() / sharp.sum())
    assert Sharpness().see(look) == pytest.approx(min(shares), rel=1e-6)


def test_dissolves_and_fades_are_cut_out(tmp_path: Path) -> None:
    a, b, c = (scene(seed, drift=False).astype(float) for seed in range(3))
    t = (np.arange(12) + 1)[:, None, None, None] / 13
    dissolve = (1 - t) * a[-12:] + t * b[:12]
    out, back = (1 - t) * b[-12:], t * c[:12]
    film = np.concatenate([a[:-12], dissolve, b[12:-12], out, 0 * b[:4], back, c[12:]]).round().astype(np.uint8)
    found = shots(film, tmp_path / "film.mp4")
    assert [reason for _, _, reason in found] == ["", "shots: within a dissolve", "", "shots: within a fade", ""]
    for (first, end, _), (want_first, want_end) in zip(found[1::2], ((24, 36), (48, 76)), strict=True):
        assert abs(first - want_first) <= 4
        assert abs(end - want_end) <= 4


def test_a_dissolve_between_shots_that_move_is_found_and_fast_motion_is_none(tmp_path: Path) -> None:
    a, b = (scene(seed, 48).astype(float) for seed in (2, 9))
    t = (np.arange(14) + 1)[:, None, None, None] / 15
    film = np.concatenate([a[:34], (1 - t) * a[34:] + t * b[:14], b[14:]]).round().astype(np.uint8)
    kinds = [reason for _, _, reason in shots(film, tmp_path / "film.mp4")]
    assert kinds == ["", "shots: within a dissolve", ""]
    ground = cv2.resize(SCENES[5][0], None, fx=4, fy=3)
    pan = np.stack([ground[60:156, 3 * k : 3 * k + 128] for k in range(96)])
    assert [reason for _, _, reason in shots(pan, tmp_path / "film.mp4")] == [""]


def test_a_dissolve_between_shots_of_one_place_is_found(tmp_path: Path) -> None:
    a, b = (np.repeat(SCENES[5][:1], 48, 0).astype(float) for _ in range(2))
    for film, seed, left in ((a, 2, 8), (b, 9, 72)):
        film[:, 24:72, left : left + 48] = scene(seed, 48)[:, 24:72, 40:88]
    t = (np.arange(14) + 1)[:, None, None, None] / 15
    film = np.concatenate([a[:34], (1 - t) * a[34:] + t * b[:14], b[14:]]).round().astype(np.uint8)
    found = shots(film, tmp_path / "film.mp4")
    assert [reason for _, _, reason in found] == ["", "shots: within a dissolve", ""]
    assert abs(found[1][0] - 34) <= 4
    assert abs(found[1][1] - 48) <= 4


def test_parts_of_a_long_shot_have_equal_length() -> None:
    times = np.arange(101) / 10
    assert Trim(1, 4).parts(0, 100, times) == [(0, 34), (34, 67), (67, 100)]
    assert Trim(1, 20).parts(0, 100, times) == [(0, 100)]


def judged(film: np.ndarray, path: Path) -> Clip:
    plan = replace(CuratePlan(duplicates=None), shots=None)
    (row,) = examine(write_film(path, film), "film", plan)
    return row[0]


@pytest.mark.parametrize(("top", "side"), [(12, 0), (0, 16), (8, 8), (0, 0)])
def test_bars_are_measured(top: int, side: int, tmp_path: Path) -> None:
    film = np.pad(SCENES[3], ((0, 0), (top, top), (side, side), (0, 0)))
    height, width = SCENES[3].shape[1:3]
    clip = judged(film, tmp_path / "film.mp4")
    if not top and not side:
        assert clip.crop is None
        return
    assert clip.crop is not None
    assert np.abs(np.array(clip.crop) - (side, top, width, height)).max() <= 2


def test_what_is_blurred_dark_frozen_or_shaky_says_so(tmp_path: Path) -> None:
    sharp = SCENES[4]
    rng = np.random.default_rng(0)
    still = np.repeat(sharp[:1], len(sharp), 0)
    spoilt = {
        "": sharp,
        "sharpness: blurred": np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in sharp]),
        "exposure: too dark": sharp // 8,
        "exposure: too bright": 255 - (255 - sharp) // 10,
        "motion: frozen": still,
        "motion: shaky": np.stack([np.roll(frame, rng.integers(-5, 6, 2), (0, 1)) for frame in still]),
    }
    for reason, film in spoilt.items():
        plan = judged(film, tmp_path / "film.mp4")
        assert plan.reason.startswith(reason), (reason, plan.reason)
        assert plan.kept is (reason == "")


@pytest.mark.parametrize(
    ("move", "name"),
    [
        (lambda t: (0, 0, 1.0), "static"),
        (lambda t: (t, 0, 1.0), "pan right"),
        (lambda t: (-t, 0, 1.0), "pan left"),
        (lambda t: (0, t, 1.0), "tilt down"),
        (lambda t: (0, -t, 1.0), "tilt up"),
        (lambda t: (0, 0, 1.0 + 0.006 * t), "zoom in"),
        (lambda t: (0, 0, 1.25 - 0.006 * t), "zoom out"),
    ],
)
def test_the_camera_is_named(move: object, name: str, tmp_path: Path) -> None:
    ground = cv2.resize(SCENES[5][0], None, fx=3, fy=3)
    frames = []
    for t in range(36):
        x, y, zoom = move(t)  # type: ignore[operator]
        matrix = np.array([[1 / zoom, 0, 128 + x - 64 / zoom], [0, 1 / zoom, 96 + y - 48 / zoom]])
        frames.append(cv2.warpAffine(ground, matrix, (128, 96), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))
    assert judged(np.stack(frames), tmp_path / "film.mp4").labels["camera"] == name


def clip_of(film: np.ndarray, name: str, folder: Path) -> tuple[Clip, Print]:
    ((clip, look),) = examine(
        write_film(folder / f"{name}.mp4", film), name, CuratePlan(shots=None, stages=(), refuse=())
    )
    assert look is not None
    return clip, look


def test_planted_duplicates_are_found_and_distinct_clips_are_not(tmp_path: Path) -> None:
    films = {f"scene {i}": film for i, film in enumerate(SCENES)}
    films["painted 12"] = SCENES[9].copy()  # in other colours, but not all of it
    films["painted 12"][:, :, :64] = SCENES[9][:, :, :64, ::-1]
    planted = {
        "copy of 0": SCENES[0],
        "small 1": np.stack([cv2.resize(f, (96, 72), interpolation=cv2.INTER_AREA) for f in SCENES[1]]),
        "cropped 2": SCENES[2][:, 8:-8, 10:-10],
        "recoloured 4": (255 * (SCENES[4] / 255.0) ** 1.5).astype(np.uint8),
        "grey 5": np.repeat(SCENES[5].mean(-1, keepdims=True), 3, -1).astype(np.uint8),
        "faster 7": np.delete(SCENES[7], np.s_[4::5], 0),
        "shorter 8": SCENES[8][1:-2],
        "swapped 6": np.ascontiguousarray(SCENES[6][..., ::-1]),
    }
    clips = [clip_of(film, name, tmp_path) for name, film in {**films, **planted}.items()]
    names = {clip.id: clip.source for clip, _ in clips}
    decided = Duplicates().decide(clips).values()
    found = {clip.source: names[clip.duplicate_of] for clip in decided if not clip.kept}
    pairs = {frozenset((a.split()[-1], b.split()[-1])) for a, b in found.items()}
    assert len(found) == len(planted)
    assert pairs == {frozenset((name.split()[-1],)) for name in planted}
