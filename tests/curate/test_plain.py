"""Curation against a plain loop of the usual libraries' calls, which is what the benchmark holds it against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.curate.films import scene, write_film
from worldline.curate.plan import CuratePlan

pytest.importorskip("scenedetect")


@pytest.mark.parametrize("sharing", [False, True])
def test_a_plain_loop_comes_to_the_same_decisions(sharing: bool, tmp_path: Path) -> None:
    from benchmarks.curate import compared, ours, plain

    moving, frozen, dark = scene(1, 60), scene(2, 60, drift=False)[:1].repeat(60, 0), scene(3, 60) // 24
    fade = (np.linspace(1, 0, 14)[1:-1, None, None, None] * moving[-12:]).astype(np.uint8)
    parts = [moving, frozen, dark, moving, fade, scene(4, 60)]
    film = write_film(tmp_path / "film.mp4", np.concatenate(parts))
    clips = ours(film, CuratePlan())
    assert {clip.reason.partition(":")[0] for clip in clips} >= {"", "motion", "exposure", "duplicates", "shots"}
    compared(film, clips, plain(film, CuratePlan(), sharing))
