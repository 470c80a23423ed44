"""The whole chain on an untrained model: determinism, independence of neighbours, guidance, conditioning, files."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldline.checkpoints.folder import Parts, save_pretrained
from worldline.cli import main
from worldline.diffusion.samplers import euler
from worldline.diffusion.timesteps import schedule
from worldline.dit.patchify import pack, unpack
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.generate import pipeline as pipeline_module
from worldline.generate.canvas import fitted, timeline
from worldline.generate.codec import to_uint8
from worldline.generate.drawing import Drawing
from worldline.generate.load import load
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import Request
from worldline.media.identity import SIGN_WITH
from worldline.media.provenance import read_provenance
from worldline.media.read import read_video
from worldline.shapes import VideoShape


@pytest.fixture(scope="module")
def pipeline(micro_parts: Parts) -> Pipeline:
    return Pipeline(micro_parts, identity="abc", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def model(micro_parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(micro_parts, tmp_path_factory.mktemp("models") / "micro")


PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_defaults_come_from_the_model(pipeline: Pipeline) -> None:
    result = pipeline.generate("a red ball rolls")
    assert result.frames.shape == (5, 32, 32, 3)
    assert result.frames.dtype == np.uint8
    assert result.fps == 16
    assert result.metadata["steps"] == 3
    assert result.metadata["model_hash"] == "abc"


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (2, 33, 47), (6, 16, 50), (5, 32, 32)])
def test_any_size_and_length(pipeline: Pipeline, frames: int, height: int, width: int) -> None:
    result = pipeline.generate("a ball", frames=frames, height=height, width=width, steps=1)
    assert result.frames.shape == (frames, height, width, 3)


def test_same_seed_same_bytes_other_seed_other_video(pipeline: Pipeline) -> None:
    first, again, other = (pipeline.generate("a red ball", seed=seed).frames for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_video_does_not_depend_on_its_neighbours(pipeline: Pipeline) -> None:
    many = pipeline.generate("a red ball", seed=5, num_videos=3)
    for index, video in enumerate(many.videos):
        alone = pipeline.generate("a red ball", seed=5 + index).frames
        assert int(np.abs(video.astype(int) - alone).max()) <= 1  # sums are taken in another order
        assert many.record(index)["seed"] == 5 + index


def test_groups_change_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    whole = pipeline.generate("a red ball", num_videos=3)
    monkeypatch.setattr(pipeline_module, "MAX_PACKED", 1)
    parts = pipeline.generate("a red ball", num_videos=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 9) for i in range(9)]
    for a, b in zip(whole.videos, parts.videos, strict=True):
        assert int(np.abs(a.astype(int) - b).max()) <= 1


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.8)])  # of two steps, from times 1 and 0.75
def test_guidance_is_the_textbook_equation(pipeline: Pipeline, interval: tuple[float, float]) -> None:
    """Two separate forward passes per step, combined by hand, end where the packed one does."""
    drawing = Drawing(
        VideoShape(5, 32, 32), steps=2, guidance_scale=3.0, negative_prompt="a ball", guidance_interval=interval
    )
    got = pipeline.denoiser.sample(["a red ball"], [7], drawing)[0]

    noise = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    packed = pack([noise], (1, 2, 2))
    dit = pipeline.experts.dit
    cond, uncond = (pipeline.parts.text.encode([words]) for words in ("a red ball", "a ball"))

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        v, u = (
            dit(x, packed.coords, packed.cu_seqlens, t.expand(len(x)), Told(text.states, text.cu_seqlens))
            for text in (cond, uncond)
        )
        return u + 3.0 * (v - u) if t <= interval[1] else v

    expected = unpack(euler(denoise, packed.tokens, schedule(2, 3.0)), packed, (1, 2, 2))[0]
    assert torch.allclose(got, expected, atol=1e-4)


def test_scale_one_ignores_the_negative_prompt(pipeline: Pipeline) -> None:
    a, b = (pipeline.generate("a ball", guidance_scale=1, negative_prompt=words).frames for words in ("", "red"))
    assert np.array_equal(a, b)
    c, d = (pipeline.generate("a ball", guidance_scale=4, negative_prompt=words).frames for words in ("", "red"))
    assert not np.array_equal(c, d)


def test_samplers_and_rescale_are_asked_for(pipeline: Pipeline) -> None:
    asked: dict[str, Any] = {"guidance_scale": 6, "steps": 5}  # in three steps DPM-Solver++ has no second order
    plain = pipeline.generate("a ball", **asked).frames
    for change in ({"sampler": "heun"}, {"sampler": "dpmpp_2m"}, {"guidance_rescale": 0.7}):
        assert not np.array_equal(plain, pipeline.generate("a ball", **asked, **change).frames)


def test_borrowed_steps_are_counted_and_come_near(pipeline: Pipeline) -> None:
    exact = pipeline.generate("a red ball", steps=8)
    assert "reuse" not in exact.metadata
    assert "reused" not in exact.metadata
    never = pipeline.generate("a red ball", steps=8, reuse=1e-9)
    assert never.metadata["reused"]["borrowed"] == 0
    np.testing.assert_array_equal(never.frames, exact.frames)
    always = pipeline.generate("a red ball", steps=8, reuse=1.0)
    assert (always.metadata["reuse"], always.metadata["reused"]) == (1.0, {"asked": 8, "borrowed": 7})
    some = pipeline.generate("a red ball", steps=8, reuse=0.2)
    assert 0 < some.metadata["reused"]["borrowed"] < 7
    assert 0 < some.metadata["reused"]["error"] < 1
    with pytest.raises(UserError, match="--reuse 2"):
        pipeline.generate("a red ball", reuse=2)


def test_compiled_blocks_share_their_programs_and_make_the_same(pipeline: Pipeline, micro_parts: Parts) -> None:
    programs = []

    def traced(graph: torch.fx.GraphModule, _: object) -> Any:
        programs.append(graph)
        return graph.forward

    compiled = Pipeline(micro_parts, device="cpu", dtype=torch.float32)
    compiled.experts.compile(backend=traced)
    made = compiled.generate("a red ball", steps=3)
    # Of two blocks and three steps: one for a block that finds how text is padded, one for those that are told.
    assert len(programs) <= 2
    assert np.abs(made.frames.astype(int) - pipeline.generate("a red ball", steps=3).frames).max() <= 1


def test_compiling_says_what_it_lacks(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile needs no-such-compiler"):
        pipeline.experts.compile()


def test_the_prompt_matters(pipeline: Pipeline) -> None:
    assert not np.array_equal(pipeline.generate("a red ball").frames, pipeline.generate("a ball rolls").frames)


def test_the_first_frame_is_the_given_picture(pipeline: Pipeline) -> None:
    plain = pipeline.generate("a ball", frames=9)
    result = pipeline.generate("a ball", frames=9, image=PICTURE)
    assert np.array_equal(result.frames[0], PICTURE)
    assert not np.array_equal(result.frames[1:], plain.frames[1:])  # and the rest follows from it


def test_known_latents_stay_as_the_picture_encodes(pipeline: Pipeline) -> None:
    shape = VideoShape(9, 32, 32)
    condition = pipeline.codec.condition(timeline([PICTURE[None], 8]))
    pixels = torch.from_numpy(PICTURE).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    known = pipeline.parts.whitening.forward(pipeline.codec.vae.encode(pixels).mean[0])
    assert torch.allclose(condition.known[:, :1], known, atol=1e-5)
    for latent in pipeline.denoiser.sample(["a", "red"], [1, 2], Drawing(shape, steps=2), condition):
        assert torch.allclose(latent[:, :1], known, atol=1e-5)


def test_a_picture_of_another_size_covers_the_frame() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    out = fitted(wide, 20, 20)
    assert out.shape == (20, 20, 3)
    assert out[:, 2:-2].min() > 250  # the middle third fills it: nothing stretched, nothing padded
    assert fitted(PICTURE, 32, 32) is PICTURE
    with pytest.raises(UserError, match="uint8"):
        fitted(np.zeros((4, 4)), 16, 16)


def test_answers_are_what_generate_makes(pipeline: Pipeline) -> None:
    for video, prompt, seed in zip(
        pipeline.answer(["a ball", "a red"], [4, 9]), ["a ball", "a red"], [4, 9], strict=True
    ):
        difference = video.astype(int) - pipeline.generate(prompt, seed=seed).frames
        assert int(np.abs(difference).max()) <= 1


def test_answers_are_planned(micro_parts: Parts) -> None:
    with pytest.raises(UserError, match="needs about"):
        Pipeline(micro_parts, max_memory=1e6).answer(["a ball"], [4])
    assert Pipeline(micro_parts).answer([], []) == []


def test_what_is_packed_together_is_what_is_made_alone(pipeline: Pipeline) -> None:
    told = ("a red ball", "a ball rolls", "red")
    asked = [pipeline.request(prompt, seed=seed, width=40, frames=6) for seed, prompt in enumerate(told)]
    steps: list[tuple[int, int]] = []
    made = pipeline.together(asked, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]  # one sequence
    for request, result in zip(asked, made, strict=True):
        alone = pipeline.run(request)
        assert result.frames.shape == (6, 32, 40, 3)
        assert np.abs(result.frames.astype(int) - alone.frames).max() <= 1
        assert result.metadata == alone.metadata


def test_a_glimpse_is_of_what_the_step_expects(micro_parts: Parts) -> None:
    pipeline = Pipeline(micro_parts, device="cpu", dtype=torch.float32)
    pipeline.denoiser.glimpses = True
    assert pipeline.glimpse() is None
    seen = []
    prompts = [pipeline.request(prompt, frames=1) for prompt in ("a red ball", "a ball rolls")]
    made = pipeline.together(prompts, lambda done, total: seen.append([pipeline.glimpse(index) for index in (0, 1)]))
    assert len(seen) == 3
    for index, result in enumerate(made):  # the last step, which ends without noise, expects what comes out
        assert np.abs(seen[-1][index].astype(int) - result.frames[0]).max() <= 1
        assert np.abs(seen[0][index].astype(int) - result.frames[0]).max() > 1


def test_a_glimpse_is_never_of_another_video(micro_parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(micro_parts, device="cpu", dtype=torch.float32)
    pipeline.denoiser.glimpses = True
    monkeypatch.setattr(pipeline_module, "MAX_PACKED", 1)  # one sequence each
    prompts = [pipeline.request(prompt, frames=1) for prompt in ("a red ball", "a ball rolls")]
    seen = []
    made = pipeline.together(prompts, lambda done, total: seen.append([pipeline.glimpse(index) for index in (0, 1)]))
    assert [[frame is not None for frame in step] for step in seen] == [[True, False]] * 3 + [[False, True]] * 3
    assert np.abs(seen[-1][1].astype(int) - made[1].frames[0]).max() <= 1


def test_reconstruction_keeps_any_size(pipeline: Pipeline) -> None:
    clip = np.random.default_rng(1).integers(0, 256, (6, 20, 33, 3)).astype(np.uint8)
    again = pipeline.codec.reconstruct(clip)
    assert again.shape == clip.shape
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mean = pipeline.codec.vae.encode(pixels).mean
    whole = to_uint8(pipeline.codec.vae.decode(mean)[0])[:6, :20, :33]
    assert int(np.abs(whole.astype(int) - again).max()) <= 1


def test_unknown_words_and_long_prompts_are_told(pipeline: Pipeline) -> None:
    request = Request("a red dragon rolls")
    assert "'dragon'" in pipeline.hints(request)[0]
    assert pipeline.hints(Request("a red ball")) == []
    assert "longer" in pipeline.hints(Request("a red ball " * 40))[-1]


def test_bfloat16_stays_near_float32(micro_parts: Parts, pipeline: Pipeline) -> None:
    half = Pipeline(micro_parts, device="cpu", dtype=torch.bfloat16).generate("a red ball").frames
    assert next(micro_parts.vae.parameters()).dtype == torch.float32  # the parts themselves stay as they are
    full = pipeline.generate("a red ball").frames
    assert float(np.abs(half.astype(int) - full).mean()) < 4


def test_result_saves_and_shows_itself(pipeline: Pipeline, tmp_path: Path) -> None:
    result = pipeline.generate("a <red> ball", num_videos=2)
    files = result.save(tmp_path / "out.mp4")
    assert [file.name for file in files] == ["out-0.mp4", "out-1.mp4"]
    assert read_video(files[1]).frames.shape == (5, 32, 32, 3)
    assert read_provenance(files[1])["seed"] == 1
    assert result._repr_html_().count("data:video/mp4;base64,") == 2
    assert "a &lt;red&gt; ball" in result._repr_html_()
    assert "32x32, 5 frames at 16 fps" in repr(result)
    with pytest.raises(UserError, match="exists"):
        result.save(tmp_path / "out.mp4", overwrite=False)
    for suffix in (".gif", ".webp"):
        assert result.save(tmp_path / f"out{suffix}")[0].stat().st_size > 100


# ---- through the command line ------------------------------------------------------------------


def test_generate_writes_video_sheet_and_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SIGN_WITH, "")  # as it was, when the test is over
    words = [
        "generate",
        "a red dragon",
        "--sign-with",
        "none",
        "--model",
        str(model),
        "--sheet",
        "--json",
        "--seed",
        "9",
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert (data["output"], data["sheet"], data["seed"]) == (["out.mp4"], "out-sheet.png", 9)
    assert set(data["timings"]) == {"text", "dit", "vae"}
    assert "dragon" in err
    record = read_provenance(tmp_path / "out.mp4")
    assert (record["prompt"], record["seed"], record["model_hash"]) == ("a red dragon", 9, data["model_hash"])
    first = (tmp_path / "out.mp4").read_bytes()
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "out.mp4").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-sheet.png", "out.mp4"]


def test_one_frame_is_a_picture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    assert main(["generate", "a ball", "--frames", "1", "-o", str(out), "--model", str(model)]) == 0
    assert "1 frames" in capsys.readouterr().out
    assert read_provenance(out)["prompt"] == "a ball"


def test_a_model_whose_weights_do_not_fit(skeleton: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = skeleton(tmp_path / "m")  # type: ignore[operator]
    assert main(["generate", "a ball", "-o", str(tmp_path / "out.mp4"), "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 500 bytes, as on a disk that is full. Not a fixture: the test's own report is a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out.webp"])
def test_a_full_disk_leaves_nothing(name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk():
        assert main(["generate", "a ball", "-o", str(tmp_path / name), "--model", str(model)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert name in err
    assert list(tmp_path.iterdir()) == []


def test_load_reads_what_was_saved(model: Path, pipeline: Pipeline) -> None:
    loaded = load(model, dtype=torch.float32)
    assert len(loaded.model_hash) == 64
    difference = loaded.generate("a red ball").frames.astype(int) - pipeline.generate("a red ball").frames
    assert float(np.abs(difference).mean()) < 1  # float16 storage
