"""The run asks for every prompt once, judges what came back, and refuses a useless folder before any work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.eval.report import Rate
from worldline.eval.runner import GROUND_TRUTH, RECONSTRUCTED, run_worlds
from worldline.eval.worlds import MODEL, renders, sample_cases
from worldline.worlds.scene import Scene


class Exact:
    """A verifier that knows a scene only by its exact pixels."""

    def __init__(self, n: int, seed: int):
        cases = sample_cases(n, seed)
        clips = renders(cases, 3, 16, 16)
        self.known = {clip.tobytes(): case.scene for clip, case in zip(clips, cases, strict=True)}

    def read(self, frames: np.ndarray, fps: float) -> Scene | None:
        return self.known.get(frames.tobytes())

    def judge(self, reading: Scene | None, scene: Scene) -> dict[str, bool]:
        return {"colour": reading == scene}


def test_every_prompt_is_asked_once_and_ceilings_stand_beside(tmp_path: Path) -> None:
    n, seed = 18, 5
    cases = sample_cases(n, seed)
    truth = list(renders(cases, 3, 16, 16))
    asked: list[tuple[str, int]] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        start = len(asked)
        asked.extend(zip(prompts, seeds, strict=True))
        return [truth[i] if i % 3 else np.zeros_like(truth[i]) for i in range(start, len(asked))]

    report = run_worlds(generate, n, seed, tmp_path / "out", lambda clip: clip ^ 1, Exact(n, seed))
    assert asked == [(case.prompt, seed + i) for i, case in enumerate(cases)]
    assert report.rates(MODEL)["everything"]["all"] == Rate(12, 18)
    assert report.rates(GROUND_TRUTH)["everything"]["all"] == Rate(18, 18)
    assert report.rates(RECONSTRUCTED)["everything"]["all"] == Rate(0, 18)
    assert len(report.failures) == 6
    saved = json.loads((tmp_path / "out/report.json").read_text())
    assert saved["rates"][MODEL]["everything"]["all"]["right"] == 12
    assert (tmp_path / "out/failures.png").exists()


@pytest.mark.parametrize("name", ["taken", "taken/below", "nul\0"])
def test_useless_folder_is_refused_before_any_video(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").touch()

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        pytest.fail("generated before the folder was checked")

    with pytest.raises(UserError, match="--out") as caught:
        run_worlds(generate, 4, 0, Path(f"{tmp_path}/{name}"), verifier=Exact(2, 0))
    assert "\n" not in str(caught.value)
