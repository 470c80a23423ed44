"""The plan: its arithmetic against the model's own, what it refuses and offers instead, what it does to decoding."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldline.checkpoints import layout
from worldline.checkpoints.folder import load_parts, save_pretrained
from worldline.checkpoints.outline import Outline
from worldline.cli import main
from worldline.errors import UserError
from worldline.generate import plan as planning
from worldline.generate.cuts import standard_cut
from worldline.generate.footprint import coding_bytes, traced
from worldline.generate.load import Deferred
from worldline.generate.pipeline import Pipeline
from worldline.generate.plan import Setting, check, fitting_cut, plan
from worldline.generate.request import Request, free_memory
from worldline.nn.hollow import bare
from worldline.vae.causal import WAN_2_1, WAN_2_2, CausalVAE, CausalVAEConfig
from worldline.vae.codec import Cut
from worldline.vae.hunyuan import HunyuanVAE, HunyuanVAEConfig
from worldline.vae.model import MICRO, VideoVAE

DEFAULTS = {"frames": 5}


def setting(**about: Any) -> Setting:
    return Setting(torch.device("cpu"), torch.float32, DEFAULTS, **about)


@pytest.fixture(scope="module")
def model(micro_parts: Any) -> Outline:
    return Outline.of_parts(micro_parts)


@pytest.fixture(scope="module")
def shipped() -> Outline:
    return Outline.of_folder(None)


# ---- arithmetic ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "videos", "sampler"), [(1.0, 1, "euler"), (3.0, 2, "euler"), (3.0, 1, "heun")])
def test_tokens_and_work_are_the_models_own(guidance: float, videos: int, sampler: str, micro_parts: Any) -> None:
    model = Outline.of_parts(micro_parts)
    request = Request("", width=70, height=50, frames=11, guidance_scale=guidance, num_videos=videos, sampler=sampler)
    made = plan(model, request, setting())
    assert made.tokens == 4 * 4 * 5  # 13 frames of 80x64 in patches of 4x16x16
    copies = 1 if guidance == 1 else 2
    each = micro_parts.dit.flops(made.tokens, made.text_rows)
    assert made.flops == request.steps * copies * videos * each * (2 if sampler == "heun" else 1)
    assert made.samples == copies * videos
    assert made.trimmed == "80x64, 13 frames are drawn and trimmed to 70x50, 11"
    assert plan(model, Request("", width=64, height=64, frames=13), setting()).trimmed is None


def test_a_long_video_is_planned_in_its_passes(model: Outline) -> None:
    request = Request("", width=32, height=32, frames=81)
    whole, cut = (plan(model, request, setting(how=how)) for how in ("whole", "sliding"))
    assert (whole.passes, whole.tokens) == (1, 21 * 4)
    assert cut.passes > 3
    assert cut.tokens == 3 * 4  # the least window
    assert cut.stages["dit"] < whole.stages["dit"]
    assert cut.how == "sliding"


def test_weights_are_counted_from_headers(shipped: Outline) -> None:
    info = layout.info(None)
    parts = load_parts()
    modules = {"vae": parts.vae, "transformer": parts.dit, "text_encoder": parts.text}
    for name, module in modules.items():
        own = sum(value.nbytes for value in module.parameters())  # type: ignore[attr-defined]
        assert shipped.loaded[name] == own == 4 * info["components"][name]["parameters"]
        assert shipped.stored[name] == 2 * info["components"][name]["parameters"]
    assert Outline.of_parts(parts).loaded == shipped.loaded
    assert Outline.of_parts(parts).text_rows == shipped.text_rows == 97


def test_large_frames_follow_from_small_ones() -> None:
    """Against the whole frame run on tensors without numbers."""
    for vae in (VideoVAE(MICRO), CausalVAE(CausalVAEConfig(4, 8, 8, multipliers=(1, 2), halve_time=(True,), blocks=1))):
        for way in ("decode_chunk", "encode_chunk"):
            for alone in (False, True):
                guess = coding_bytes(vae, torch.float32, way, 3, 30, 40, alone)
                exact, _ = traced(type(vae), vae.config, torch.float32, way, alone, 3, 30, 40)
                assert guess == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("config", [WAN_2_1, WAN_2_2], ids=["2.1", "2.2"])
@pytest.mark.parametrize("frames", [1, 4])
def test_large_frames_are_foreseen_in_their_own_pieces(config: CausalVAEConfig, frames: int) -> None:
    """Levels of Wan's decoder take the fewer frames at a time the larger those are: small ones would say three times
    too much."""
    with bare():
        vae = CausalVAE(config)
    for way in ("decode_chunk", "encode_chunk"):
        guess = coding_bytes(vae, torch.bfloat16, way, frames, 34, 60)
        exact, _ = traced(CausalVAE, config, torch.bfloat16, way, False, frames, 34, 60)
        assert guess == pytest.approx(exact, rel=0.01)


def test_more_of_anything_takes_more(shipped: Outline) -> None:
    sizes = [(64, 64, 17), (256, 256, 17), (256, 256, 65), (512, 512, 65)]
    peaks = [plan(shipped, Request("", width=w, height=h, frames=f), setting()).peak for w, h, f in sizes]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1] / 2


def test_the_loose_bound_is_above_the_plan(model: Outline, shipped: Outline) -> None:
    for outline, request in itertools.product(
        (model, shipped), (Request(""), Request("", width=512, height=256), Request("", frames=65, num_videos=3))
    ):
        latent = request.padded.latent()
        cut = standard_cut(latent.height, latent.width)
        bound = planning._loosely(outline, request, setting(), cut) + planning.WORKSPACE
        assert plan(outline, request, setting(ready=True)).peak < bound


# ---- what does not fit -----------------------------------------------------------------------------


def test_what_does_not_fit_names_what_does(shipped: Outline) -> None:
    request = Request("", width=1024, height=512, frames=33)
    tight = setting(limit=0.5e9)
    assert not plan(shipped, request, tight).fits
    with pytest.raises(UserError, match=r"--size 1024x512, 33 frames needs about .* GB of memory") as caught:
        check(shipped, request, tight)
    size, frames = str(caught.value).split("nearest valid value is ")[1].split(", or --frames ")
    width, height = map(int, size.split("x"))
    assert check(shipped, replace(request, width=width, height=height), tight).fits
    assert check(shipped, replace(request, frames=int(frames)), tight).fits
    assert not plan(shipped, replace(request, frames=int(frames) + 4), tight).fits
    with pytest.raises(UserError, match="no size fits"):
        check(shipped, request, setting(limit=1e6))


def test_memory_decides_the_cut_and_plenty_never_does(shipped: Outline) -> None:
    request = Request("", width=1024, height=1024, frames=5)
    roomy = plan(shipped, request, setting(limit=1e12)).cut
    assert roomy == fitting_cut(shipped, request, setting(limit=1e12)) == standard_cut(128, 128)
    small = Request("", width=512, height=512, frames=5)
    limits = [plan(shipped, small, setting()).peak, 500e6, 300e6]
    cuts = [plan(shipped, small, setting(limit=limit)) for limit in limits]
    assert cuts[0].cut == Cut(4)
    assert [made.peak for made in cuts] == sorted((made.peak for made in cuts), reverse=True)
    assert cuts[-1].cut.side > 0
    assert cuts[-1].peak <= 300e6


def test_an_autoencoder_of_whole_clips_is_blended_only_where_it_must(shipped: Outline) -> None:
    config = HunyuanVAEConfig(16, (16, 16, 32, 32), 1, 4)
    with torch.device("meta"):
        model = replace(shipped, vae=HunyuanVAE(config))
    request = Request("", width=256, height=256, frames=33)
    free = plan(model, request, setting())
    assert free.cut == Cut(9)  # the whole clip
    tight = plan(model, request, setting(limit=free.peak - 1))
    assert tight.cut.blended
    assert tight.peak < free.peak
    assert tight.as_dict()["approximate"] is True
    assert any("approximation" in line for line in tight.lines())


def test_a_device_that_is_not_here_is_planned_without_the_machines_memory(shipped: Outline) -> None:
    where = replace(setting(), device=torch.device("cuda"), dtype=torch.bfloat16)
    made = plan(shipped, Request(""), where)
    assert made.limit is None
    assert made.fits
    assert set(made.needed) == {"dit", "decode"}


# ---- in use ----------------------------------------------------------------------------------------


def test_a_pipeline_refuses_and_cuts_by_the_plan(micro_parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_memory() > 1e6
    whole = Pipeline(micro_parts, dtype=torch.float32)
    request = whole.request("a red ball", width=192, height=160, frames=9, steps=1)
    expected = whole.run(request).frames
    assert whole.codec.cuts == {(20, 24): Cut(4)}
    monkeypatch.setattr("worldline.generate.room.fitting_cut", lambda *_: Cut(1, 7))
    tiled = Pipeline(micro_parts, dtype=torch.float32)
    image = expected[0]
    found = tiled.run(request).frames
    assert np.abs(found.astype(int) - expected).max() <= 1  # a value may round either way
    monkeypatch.undo()
    one = whole.run(request, image).frames
    monkeypatch.setattr("worldline.generate.room.fitting_cut", lambda *_: Cut(1, 7))
    assert np.abs(tiled.run(request, image).frames.astype(int) - one).max() <= 1
    monkeypatch.undo()
    small = Pipeline(micro_parts, dtype=torch.float32, max_memory=1e6)
    with pytest.raises(UserError, match="no size fits"):
        small.run(request)


def test_an_edit_is_refused_before_its_model_is_loaded(micro_parts: Any, tmp_path: Path) -> None:
    folder = save_pretrained(micro_parts, tmp_path / "model")
    deferred = Deferred(folder, layout.defaults(folder), max_memory=1e6)
    with pytest.raises(UserError, match="no size fits"):
        deferred.request("a ball")
    assert "pipeline" not in vars(deferred)


FIELDS = {
    "model", "asked", "drawn", "tokens", "text_rows", "samples", "passes", "how", "flops", "device", "dtype", "cut",
    "stages", "host", "limit", "approximate", "peak", "fits", "trimmed",
    "experts",
}  # fmt: skip


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "70x64", "--frames", "18", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == FIELDS
    assert data["drawn"] == {"frames": 21, "height": 64, "width": 80}
    assert set(data["stages"]) == {"load", "text", "dit", "decode"}
    assert data["fits"] is True
    assert main(["plan"]) == 0
    shown = capsys.readouterr().out
    assert "64x64, 17 frames" in shown
    assert "fits" in shown


def test_a_picture_and_frames_that_are_held_are_planned_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    def stages(*more: str) -> dict[str, int]:
        assert main(["plan", "--size", "512x512", "--frames", "65", "--json", *more]) == 0
        made: dict[str, int] = json.loads(capsys.readouterr().out)["stages"]
        return made

    alone = stages()
    assert set(stages("--image")) == {*alone, "encode"}
    held = 2 * 3 * 65 * 512**2
    assert stages("--long", "whole")["decode"] - alone["decode"] == pytest.approx(held, rel=0.2)  # of a living process


@pytest.mark.parametrize("verb", [["plan"], ["generate", "a red ball"]])
def test_too_much_ends_in_one_line_and_exit_code_2(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "--size", "512x512", "--max-memory", "2MB"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(err) == 1
    assert "memory" in err[0]
    assert list(tmp_path.iterdir()) == []
    assert main([*verb, "--max-memory", "lots"]) == 2
    assert "--max-memory 'lots'" in capsys.readouterr().err


def test_a_plan_reads_headers_alone(
    skeleton: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder whose weights fit nothing."""
    folder = skeleton(tmp_path / "model")
    assert main(["plan", "--model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 80
    assert main(["plan", "--model", str(tmp_path / "none")]) == 2
    assert "--model" in capsys.readouterr().err


def test_the_shipped_model_needs_no_compiler() -> None:
    """Neither its outline nor its weights go through torch's compiler, which takes a second or two to import."""
    code = (
        "import sys; from worldline.checkpoints import layout; from worldline.checkpoints.outline import Outline;"
        "from worldline.generate.load import load;"
        "Outline.of_folder(layout.check(None)); load();"
        "print([name for name in ('sympy', 'torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
