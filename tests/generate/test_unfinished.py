"""Long videos in the making: playable before they are finished, and the same bytes after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.checkpoints.folder import Parts, save_pretrained
from worldline.cli import main
from worldline.errors import UserError
from worldline.generate.pipeline import Pipeline
from worldline.generate.unfinished import unfinished, write_long
from worldline.media.identity import SIGN_WITH, UNSIGNED
from worldline.media.provenance import read_provenance
from worldline.media.read import read_video
from worldline.media.write import growing

SECONDS = 6  # 97 frames, 25 latent frames


@pytest.fixture(scope="module")
def parts(micro_parts: Parts) -> Parts:
    """The model as if it had been trained on windows of 3 latent frames."""
    return replace(micro_parts, defaults={**micro_parts.defaults, "window": 3, "steps": 1})


@pytest.fixture(scope="module")
def pipeline(parts: Parts) -> Pipeline:
    return Pipeline(parts, identity="abc", device="cpu", dtype=torch.float32)


def test_long_is_written_as_it_would_be_made_at_once(pipeline: Pipeline, tmp_path: Path) -> None:
    request = pipeline.request("a ball", seconds=SECONDS)
    write_long(pipeline, request, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    written = read_video(tmp_path / "out.mp4").frames
    pipeline.generate("a ball", seconds=SECONDS).save(tmp_path / "once.mp4")
    once = read_video(tmp_path / "once.mp4").frames  # through the same codec, with other key frames
    assert written.shape == once.shape == (97, 32, 32, 3)
    assert np.abs(written.astype(int) - once).mean() < 4
    assert read_provenance(tmp_path / "out.mp4")["prompt"] == "a ball"


@pytest.mark.parametrize("how", ["sliding", "long-range", "hierarchy"])
def test_an_interruption_loses_no_step_and_changes_no_byte(
    how: str, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGN_WITH, UNSIGNED)  # manifests are salted by chance
    request = pipeline.request("a ball", seconds=SECONDS)
    picture = np.full((32, 32, 3), 90, np.uint8)
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    write_long(pipeline, request, whole, picture, how)
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == total // 2 + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_long(pipeline, request, out, picture, how, stop)
    assert not out.exists()
    if how == "sliding":
        playable = read_video(growing(out)).frames
        assert 4 < len(playable) < 97
    kept = len(list(unfinished(out).glob("step-*")))
    assert kept == len(calls) - 1
    with pytest.raises(UserError, match="another unfinished video"):
        write_long(pipeline, replace(request, seed=1), out, picture, how)
    rest: list[int] = []
    write_long(pipeline, request, out, picture, how, lambda done, total: rest.append(done))
    assert rest[0] == kept + 1
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "whole.mp4"]


def test_through_the_command_line(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(parts, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a ball", "--seconds", "2", "--model", "model", "--num-videos", "2", "--sheet"]
    assert main(words) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert "out-1.mp4" in out
    assert "watch it grow" in err
    assert read_video("out-0.mp4").frames.shape == (33, 32, 32, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out-0.mp4", "out-1.mp4", "out-sheet.png"]
    assert main([*words[:4], "--model", "model", "-o", "out.gif"]) == 0  # no growing file, but the same video
    assert main([*words, "--dry-run", "--overwrite"]) == 0
    assert "hierarchy" in capsys.readouterr().out
