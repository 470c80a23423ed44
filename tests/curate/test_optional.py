"""Stages asked for by name: text over the picture, and how pleasing it looks; offline, on weights made here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.curate.films import scene, write_film
from worldline.cli import main
from worldline.curate.aesthetic import Aesthetic
from worldline.curate.examine import examine
from worldline.curate.pipeline import curate
from worldline.curate.plan import CuratePlan
from worldline.curate.sources import expand
from worldline.curate.stage import Stage
from worldline.curate.text import Text
from worldline.errors import UserError
from worldline.records import Clip

pytest.importorskip("scenedetect")


def judged(film: np.ndarray, path: Path, stage: Stage) -> Clip:
    plan = replace(CuratePlan(duplicates=None), shots=None, stages=(stage,))
    ((clip, _),) = examine(write_film(path, film), "film", plan)
    return clip


def titled(film: np.ndarray, words: str) -> np.ndarray:
    out = film.copy()
    for frame in out:
        for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.putText(frame, words, (40, 215), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, width)
    return out


def test_a_line_of_text_is_found_and_a_texture_is_none(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    film = scene(3, 30, 240, 320)
    clear, spoilt = (judged(f, tmp_path / "film.mp4", Text()) for f in (film, titled(film, "happily ever after")))
    assert clear.kept
    assert clear.scores["text"] == 0
    assert spoilt.reason.startswith("text: text over ")
    assert 0.02 < spoilt.scores["text"] < 0.12
    allowed = judged(titled(film, "happily ever after"), tmp_path / "film.mp4", Text(most=0.2))
    assert allowed.kept


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random CLIP tower as transformers saves it, and a head of two layers."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    head = folder / "head.safetensors"
    layers = {"layers.0": (5, 12), "layers.10": (1, 5)}  # the second by number, the first by name
    save_file({f"{name}.{part}": torch.randn(shape if part == "weight" else shape[0])
               for name, shape in layers.items() for part in ("weight", "bias")}, head)  # fmt: skip
    return folder, head


def test_the_head_scores_what_clip_sees(weights: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import CLIPVisionModelWithProjection

    folder, head = weights
    film = np.full((30, 64, 64, 3), (200, 90, 40), np.uint8)
    film[:, :32] = 20
    stage = Aesthetic(least=-1e3, clip=str(folder), head=str(head))
    clip = judged(film, tmp_path / "film.mp4", stage)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    pixels = (torch.from_numpy(film[0, ::2, ::2]).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        x = CLIPVisionModelWithProjection.from_pretrained(folder).eval()(pixels[None]).image_embeds
        x = x / x.norm()
        layers = load_file(head)
        for name in ("layers.0", "layers.10"):
            x = x @ layers[f"{name}.weight"].T + layers[f"{name}.bias"]
    assert clip.kept
    assert clip.scores["aesthetic"] == pytest.approx(float(x), abs=0.05)  # H.264 in between
    strict = judged(film, tmp_path / "film.mp4", replace(stage, least=float(x) + 1))
    assert strict.reason.startswith("aesthetic: not pleasing")


def test_weights_that_are_missing_or_do_not_fit_are_named_before_any_work(
    weights: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, head = weights
    film = write_film(tmp_path / "film.mp4", scene(1))
    sources, _ = expand([str(film)])
    save_file({"layers.0.weight": torch.zeros(1, 3), "layers.0.bias": torch.zeros(1)}, tmp_path / "other.safetensors")
    for stage, said in (
        (Aesthetic(), "no weights come with"),
        (Aesthetic(clip=str(tmp_path), head=str(head)), "cannot be read"),
        (Aesthetic(clip=str(folder), head=str(tmp_path / "other.safetensors")), "3 to 1"),
    ):
        with pytest.raises(UserError, match=said):
            curate(sources, tmp_path / "out", replace(CuratePlan(), stages=(stage,)))
    out = ["--out", str(tmp_path / "out")]
    assert main(["curate", str(film), *out, "--with", "aesthetic"]) == 2
    assert "aesthetic.clip" in capsys.readouterr().err
    assert main(["curate", str(film), *out, "--with", "txt"]) == 2
    assert "text or aesthetic" in capsys.readouterr().err
    flags = ["--with", "aesthetic", "--set", f"aesthetic.clip={folder}", "--set", f"aesthetic.head={head}"]
    assert main(["curate", str(film), *out, *flags, "--set", "aesthetic.least=-99", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1
