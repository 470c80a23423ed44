"""What an autoencoder keeps: against the metrics by hand, and from the command line on the shipped one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worldline.cli import main
from worldline.eval.codec import judge
from worldline.eval.quality import psnr
from worldline.vae.image import ImageVAE, ImageVAEConfig
from worldline.vae.model import MICRO, VideoVAE


def test_sets_are_judged_apart() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((3, 5, 16, 16, 3), 128, np.uint8)
    noise = rng.integers(0, 255, (2, 5, 18, 20, 3), np.uint8)
    report = judge(VideoVAE(MICRO).eval(), {"flat": flat, "noise": noise, "none": flat[:0]}, batch=2)
    assert set(report.sets) == {"flat", "noise"}
    assert report.compression == 48
    assert report.sets["flat"].clips == 3
    assert report.sets["flat"].flicker_before == 0 < report.sets["noise"].flicker_before
    assert report.sets["noise"].psnr < report.sets["flat"].psnr
    assert report.sets["noise"].ssim < 0.5
    assert "48 to 1" in report.table()


def test_an_autoencoder_of_images_is_judged_as_well() -> None:
    clips = np.zeros((1, 4, 8, 8, 3), np.uint8)
    report = judge(ImageVAE(ImageVAEConfig(widths=(8, 8), blocks=1, groups=4)).eval(), {"dark": clips})
    assert (report.temporal, report.spatial) == (1, 2)
    assert np.isfinite(report.sets["dark"].psnr)


def test_the_command_judges_the_shipped_model(tmp_path, capsys) -> None:
    clips = np.random.default_rng(0).integers(0, 255, (3, 5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "noise.npy", clips)
    assert main(["eval", "vae", "--n", "2", "--real", str(tmp_path / "noise.npy"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["sets"]["worlds"]["psnr"] > 28
    assert data["sets"]["noise"]["psnr"] < 20
    assert psnr(clips, clips) == np.inf
    assert main(["eval", "vae", "--real", str(tmp_path / "absent.npy")]) == 2


@pytest.mark.parametrize("words", [["--n", "0"], ["--size", "0x64"]])
def test_bad_words_are_refused(words: list[str]) -> None:
    assert main(["eval", "vae", *words]) == 2
