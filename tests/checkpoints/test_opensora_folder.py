"""Open-Sora 2.0 as published: outputs of its own code on a tiny random model (tests/data/opensora2, whose golden.json
explains every key), each published pitfall put back, its flat folder, and what is refused before anything is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worldline.checkpoints import families, layout, opensora
from worldline.checkpoints.folder import Parts, SchedulerConfig, convert, load_parts, save_pretrained
from worldline.checkpoints.hunyuan_vae import load_hunyuan_vae
from worldline.checkpoints.keymap import Piece
from worldline.checkpoints.outline import Outline
from worldline.checkpoints.weights import Weights
from worldline.cli import main
from worldline.dit import mmdit
from worldline.dit.conditions import Conditions, first_frame, known_frames
from worldline.dit.mmdit import MMDiT
from worldline.dit.patchify import patchify
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.generate import denoiser as denoising
from worldline.generate import drawing as drawings
from worldline.generate import edit
from worldline.generate import plan as planning
from worldline.generate.canvas import timeline
from worldline.generate.drawing import Drawing
from worldline.generate.load import Deferred
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import Request
from worldline.media.read import Video, read_video
from worldline.media.write import write_image
from worldline.shapes import Grid, VideoShape
from worldline.text import HFText, TextStates, WithPooled
from worldline.vae.codec import Cut
from worldline.vae.hunyuan import HunyuanVAE

LIMIT = 1e-5  # relative, in fp32; 2e-6 is seen
DATA = Path(__file__).parent.parent / "data" / "opensora2"
GOLDEN = load_file(DATA / "golden.safetensors")
TRANSFORMER, VAE = DATA / "Open_Sora_v2.safetensors", DATA / "hunyuan_vae.safetensors"
T5, CLIP = families.OPENSORA_TOKENIZERS
PROMPT = "a red ball"
A, B = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)


class GoldenText:
    """The text states of the sampled cases, for exactly what Open-Sora's encoders would have been given."""

    width = 32
    rows: dict[str, int] = {f"{PROMPT}. 24 FPS. 4 motion score.": 0, "": 1}  # noqa: RUF012

    def encode(self, prompts: Sequence[str]) -> TextStates:
        rows = [self.rows[prompt] for prompt in prompts]
        states, pooled = GOLDEN["pipe/txt"][rows], GOLDEN["pipe/y_vec"][rows]
        cu = torch.arange(len(rows) + 1) * states.shape[1]
        return TextStates(states.flatten(0, 1), cu, pooled=pooled)


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The golden model."""
    weights = Weights([TRANSFORMER])
    shapes = {name: tuple(value.shape) for name, value in weights.shapes.items()}
    config = opensora.config_of_shapes(shapes, json.loads((DATA / "Open_Sora_v2.json").read_text()))
    dit = Piece("golden", lambda: MMDiT(config), weights, opensora.table(config)).load()
    vae, whitening = load_hunyuan_vae(VAE, groups=4)
    return Parts(vae, dit, GoldenText(), whitening, SchedulerConfig(spacing="opensora"), families.OPENSORA_DEFAULTS)


def pipeline_of(parts: Parts, **changed: Any) -> Pipeline:
    return Pipeline(dataclasses.replace(parts, **changed), dtype=torch.float32)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ---- what Open-Sora's own code answers -------------------------------------------------------------


def answer(dit: MMDiT, case: str) -> Tensor:
    """The velocity of one golden call of the transformer."""
    z, txt, vector, cond, t = (GOLDEN[f"{case}/{name}"] for name in ("z", "txt", "y_vec", "cond", "t"))
    tokens, coords = patchify(z, (1, 2, 2))
    assert torch.equal(coords.float(), GOLDEN[f"{case}/img_ids"][0])
    told = Told(txt[0], torch.tensor([0, txt.shape[1]]), vector=vector)
    mask, known = cond[0].split([4, 64], dim=1)
    return dit(tokens, coords, torch.tensor([0, len(tokens)]), t.expand(len(tokens)), told, known, mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", ["dit/0", "dit/1", "dit/2"])
def test_the_transformer_is_theirs(case: str, parts: Parts) -> None:
    assert isinstance(parts.dit, MMDiT)
    assert error(answer(parts.dit, case), GOLDEN[f"{case}/out"][0]) < LIMIT


@pytest.mark.parametrize("case", ["vae/1x1x32x48", "vae/1x5x32x48", "vae/1x9x32x48", "vae/1x17x32x32"])
def test_the_autoencoder_is_theirs_untiled(case: str, parts: Parts) -> None:
    latents = parts.whitening.forward(parts.vae.encode(GOLDEN[f"{case}/video"]).mode())
    assert error(latents, GOLDEN[f"{case}/latent"]) < LIMIT
    pixels = parts.vae.decode(parts.whitening.inverse(GOLDEN[f"{case}/z"]))
    assert error(pixels, GOLDEN[f"{case}/decoded"]) < LIMIT


def sampled(pipeline: Pipeline, case: str, patch: pytest.MonkeyPatch, **asked: Any) -> Tensor:
    """Latents (C, T', H', W') of a golden case, from its own noise."""
    settings = {"steps": 12, "guidance_scale": 5.0, "guidance_scale_image": 3.0, **asked}
    request = pipeline.request(PROMPT, frames=9, height=32, width=48, **settings)
    known = first_frame(GOLDEN[f"{case}/ref0"][0][:, None], 3) if f"{case}/ref0" in GOLDEN else None
    with patch.context() as noise:
        noise.setattr(torch, "randn", lambda *_, **__: GOLDEN[f"{case}/z"][0].clone())
        return pipeline.denoiser.sample([PROMPT], [0], Drawing.of(request), known)[0]


@pytest.mark.parametrize(("case", "given"), [("pipe/t2v", 0), ("pipe/i2v_head", 1)])
def test_sampling_is_theirs(case: str, given: int, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve steps, of which the last is without guidance. Their latents are those before the picture's stand
    in their place, their pixels those after."""
    pipeline = pipeline_of(parts)
    got = sampled(pipeline, case, monkeypatch)
    assert error(got[:, given:], GOLDEN[f"{case}/latents"][0, :, given:]) < LIMIT
    if given:
        assert torch.equal(got[:, 0], GOLDEN[f"{case}/ref0"][0])
    pixels = parts.vae.decode(parts.whitening.inverse(got)[None])
    assert error(pixels, GOLDEN[f"{case}/decoded"]) < LIMIT
    pieces = iter(got.split(1, dim=1))  # which wait for their end
    shown = np.concatenate(list(pipeline.codec.decode(pieces)))
    levels = (GOLDEN[f"{case}/decoded"][0].clamp(-1, 1).permute(1, 2, 3, 0).numpy() + 1) * 127.5
    assert np.abs(shown - levels).max() < 0.51


# ---- the published pitfalls, put back --------------------------------------------------------------


Break = Callable[[Pipeline, pytest.MonkeyPatch], None]


def neighbours_are_rotated(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    own = mmdit.rotate

    def rotate(x: Tensor, rope: Any) -> Tensor:
        halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return own(halves, rope).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    patch.setattr(mmdit, "rotate", rotate)


def scheduled(**changed: Any) -> Break:
    def put_back(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
        pipeline.denoiser.scheduler = SchedulerConfig(**changed)

    return put_back


def shift_of_all_tokens(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    from worldline.checkpoints import folder

    own = folder.opensora_shift
    patch.setattr(folder, "opensora_shift", lambda tokens, frames: own(tokens * frames, frames))


def other_order(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    own = denoising.cfg_text_image
    patch.setattr(denoising, "cfg_text_image", lambda a, b, c, *scales: own(a, c, b, *scales))


def flat_image_scale(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drawings, "image_ramp", lambda scale, step, steps, frames: torch.full((frames,), scale))


def oscillating_one_later(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    own = drawings.oscillating
    patch.setattr(drawings, "oscillating", lambda scale, step: own(scale, step + 1))


def held(known: str) -> Break:
    def put_back(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
        pipeline.experts.dit.config = dataclasses.replace(pipeline.experts.dit.config, known=known)

    return put_back


def no_vector(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    own = pipeline.denoiser._told

    def told(text: Any, condition: Any) -> Any:
        whole = own(text, condition)
        return whole._replace(vector=torch.zeros_like(whole.vector))

    patch.setattr(pipeline.denoiser, "_told", told)


PITFALLS: dict[str, tuple[str, Break]] = {
    "neighbours rotated": ("pipe/t2v", neighbours_are_rotated),
    "a fixed shift": ("pipe/t2v", scheduled(shift=3.0)),
    "shift of all tokens": ("pipe/t2v", shift_of_all_tokens),
    "no pooled vector": ("pipe/t2v", no_vector),
    "batch order": ("pipe/i2v_head", other_order),
    "no ramp": ("pipe/i2v_head", flat_image_scale),
    "another step": ("pipe/t2v", oscillating_one_later),
    "clean among the noisy": ("pipe/i2v_head", held("clean")),
    "replacement": ("pipe/i2v_head", held("noisy")),
}


@pytest.mark.parametrize("name", PITFALLS)
def test_a_pitfall_put_back_tells(name: str, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    case, pitfall = PITFALLS[name]
    pipeline = pipeline_of(parts)
    pitfall(pipeline, monkeypatch)
    got = sampled(pipeline, case, monkeypatch)
    assert error(got[:, 1:], GOLDEN[f"{case}/latents"][0, :, 1:]) > 20 * LIMIT


@pytest.mark.parametrize(
    ("case", "asked"),
    [
        ("pipe/t2v", {"guidance_oscillation": False}),
        ("pipe/i2v_head", {"guidance_oscillation": False}),
        ("pipe/i2v_head", {"guidance_scale_image": 1.0}),
    ],
)
def test_settings_are_those_of_the_case(
    case: str, asked: dict[str, Any], parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = sampled(pipeline_of(parts), case, monkeypatch, **asked)
    assert error(got[:, 1:], GOLDEN[f"{case}/latents"][0, :, 1:]) > 20 * LIMIT


def test_an_autoencoder_in_pieces_tells(parts: Parts) -> None:
    """diffusers tiles above 16 frames, and blends; only the whole clip is theirs."""
    z, whole = parts.whitening.inverse(GOLDEN["vae/1x17x32x32/z"]), GOLDEN["vae/1x17x32x32/decoded"]
    assert error(parts.vae.decode(z[:, :, :4]), whole[:, :, :13]) > 0.01


# ---- guidance by what is known ----------------------------------------------------------------------


def test_what_is_known_costs_a_third_copy_only_while_it_guides(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_of(parts)
    asked: list[int] = []
    own = pipeline.experts.dit.forward

    def forward(tokens: Tensor, *rest: Any, **more: Any) -> Tensor:
        asked.append(len(tokens) // 18)
        return own(tokens, *rest, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(pipeline.experts.dit, "forward", forward)
    sampled(pipeline, "pipe/i2v_head", monkeypatch)
    sampled(pipeline, "pipe/t2v", monkeypatch)
    sampled(pipeline, "pipe/i2v_head", monkeypatch, guidance_scale_image=1.0, guidance_oscillation=False)
    sampled(pipeline, "pipe/i2v_head", monkeypatch, guidance_scale=1.0, guidance_interval=(0.0, 0.0))
    assert asked == [3] * 11 + [1] + [2] * 11 + [1] + [2] * 12 + [1] * 12


def test_a_video_does_not_depend_on_its_neighbours(parts: Parts) -> None:
    pipeline = pipeline_of(parts)
    drawing = Drawing.of(pipeline.request(PROMPT, frames=9, height=32, width=48, steps=3))
    known = first_frame(GOLDEN["pipe/i2v_head/ref0"][0][:, None], 3)
    together = pipeline.denoiser.sample([PROMPT] * 2, [3, 4], drawing, known)
    for seed, both in zip((3, 4), together, strict=True):
        assert error(both, pipeline.denoiser.sample([PROMPT], [seed], drawing, known)[0]) < LIMIT


def scales_at(known: Conditions, steps: int = 4) -> Any:
    drawing = Drawing(VideoShape(17, 32, 32), steps=steps, guidance_scale=5.0, guidance_scale_image=3.0)
    times = torch.linspace(1, 0, steps + 1)
    return drawings.scales_of(dataclasses.replace(drawing, guidance_oscillation=True), known, (1, 2, 2), times)


def test_the_ramp_is_for_pictures_alone() -> None:
    """Their video to video, whose first latent frames are known, has one scale for all frames."""
    latents = torch.zeros(16, 3, 4, 4)
    shape = (16, 5, 4, 4)
    for frames in ({0: latents[:, :1]}, {-1: latents[:, :1]}, {0: latents[:, :1], -1: latents[:, :1]}):
        text, image = scales_at(known_frames(frames, shape))(0.5, 5.0)
        assert text == 5.0
        assert image[::4, 0].tolist() == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert scales_at(known_frames({0: latents}, shape))(0.5, 5.0) == (5.0, 3.0)
    assert scales_at(known_frames({}, shape))(0.5, 5.0) == (5.0, 1.0)


def test_pictures_are_encoded_alone(parts: Parts) -> None:
    """The last one as a clip of one frame, too; their autoencoder would normalise a longer stretch as a whole."""
    pipeline = pipeline_of(parts)
    known = pipeline.codec.condition(timeline([A[None], 7, B[None]]))
    assert known.mask.amax((2, 3)).tolist() == [[1, 0, 0]]  # the last picture is one of four frames
    known = pipeline.codec.condition(timeline([A[None], 4, np.repeat(B[None], 4, 0)]))
    assert known.mask.amin((2, 3)).tolist() == [[1, 0, 1]]
    for picture, place in ((A, 0), (B, 2)):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
        alone = parts.whitening.forward(parts.vae.encode(pixels).mean[0])[:, 0]
        assert error(known.known[:, place], alone) < LIMIT


# ---- the folder --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published, with tiny encoders of the widths that the golden model reads."""
    pytest.importorskip("transformers", reason="extra 'text' is not installed")
    from tests.test_text_checkpoints import clip_text, save_clip_tokenizer, save_umt5_tokenizer, t5_like

    place: Path = tmp_path_factory.mktemp("models") / "Open-Sora-v2"
    names = ("Open_Sora_v2.safetensors", "Open_Sora_v2.json", "hunyuan_vae.safetensors", "hunyuan_vae.json")
    place.mkdir()
    for name in names:
        shutil.copy(DATA / name, place / name)
    t5, clip = (place / name for name in families.OPENSORA_TOKENIZERS)
    t5_like("T5", d_model=32).save_pretrained(t5)
    save_umt5_tokenizer(t5)
    clip_text(eos=31).save_pretrained(clip)
    save_clip_tokenizer(clip)
    return place


def test_a_folder_loads_as_published(folder: Path, parts: Parts) -> None:
    found = load_parts(folder)
    assert isinstance(found.dit, MMDiT)
    assert isinstance(found.vae, HunyuanVAE)
    assert found.dit.config == parts.dit.config
    assert found.scheduler == parts.scheduler
    assert error(answer(found.dit, "dit/2"), GOLDEN["dit/2/out"][0]) < LIMIT
    got = found.text.encode([PROMPT, ""])
    t5, clip = (HFText(str(folder / name)) for name in families.OPENSORA_TOKENIZERS)
    assert got.cu_seqlens.tolist() == [0, 512, 1024]  # rows of padding are words like others
    assert got.pooled is not None
    assert torch.equal(got.pooled, clip.encode([PROMPT, ""]).pooled)  # type: ignore[arg-type]
    assert error(got.states[:4], t5.encode([PROMPT]).states) > 0.01  # attending under a mask


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_half_precision_stays(folder: Path, tmp_path: Path) -> None:
    """But for T5's float16, whose range it leaves, and CLIP, which is computed in float32."""
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    (half / "config.json").write_text("{}")  # which does not make it a folder of Wan's authors
    stored = {"Open_Sora_v2": torch.bfloat16, "hunyuan_vae": torch.bfloat16, f"{T5}/model": torch.float16}
    for stem, dtype in stored.items():
        rewrite(half / f"{stem}.safetensors", lambda held, dtype=dtype: {n: x.to(dtype) for n, x in held.items()})
    found = load_parts(half)
    assert isinstance(found.text, WithPooled)
    modules = (found.dit, found.vae, found.text.states.model)  # type: ignore[attr-defined]
    assert [{x.dtype for x in module.parameters()} for module in modules] == [{torch.bfloat16}] * 3
    pipeline = Pipeline(found, source=half)
    assert pipeline.dtype == torch.bfloat16
    request = pipeline.request(PROMPT, frames=5, height=32, width=32, steps=2)
    made = pipeline.denoiser.sample([PROMPT], [0], Drawing.of(request))[0]
    assert made.isfinite().all()


def test_encoders_may_lie_in_whole_models(folder: Path, parts: Parts, tmp_path: Path) -> None:
    """As published: T5 with its decoder, the text tower of CLIP under a prefix beside the picture's."""
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    more = {"vision_model.x": torch.zeros(1), "logit_scale": torch.zeros(())}
    rewrite(whole / CLIP / "model.safetensors", lambda held: {f"text_model.{n}": x for n, x in held.items()} | more)
    rewrite(whole / T5 / "model.safetensors", lambda held: held | {"lm_head.weight": torch.zeros(1)})
    for name in ("states", "pooled"):
        got, want = (getattr(load_parts(place).text.encode([PROMPT]), name) for place in (whole, folder))
        assert torch.equal(got, want)


def test_t5_under_a_mask_gives_other_videos(folder: Path) -> None:
    whole = load_parts(folder)
    assert isinstance(whole.text, WithPooled)
    masked = WithPooled(HFText(str(folder / "google/t5-v1_1-xxl"), 512, padding="zeros"), whole.text.pooled)
    both = []
    for text in (whole.text, masked):
        pipeline = pipeline_of(whole, text=text)
        drawing = Drawing.of(pipeline.request(PROMPT, frames=5, height=32, width=32, steps=2))
        both.append(pipeline.denoiser.sample([PROMPT], [0], drawing)[0])
    assert error(both[1], both[0]) > 100 * LIMIT


def test_traits_and_defaults_are_the_loaded_models(folder: Path) -> None:
    ready, deferred = pipeline_of(load_parts(folder)), Deferred(folder, layout.defaults(folder))
    for name in ("grid", "driven", "pictures", "defaults", "window"):
        assert getattr(ready, name) == getattr(deferred, name)
    assert (ready.grid, ready.driven, ready.pictures, ready.holding) == (Grid(4, 8), False, 0, "masks")
    request = deferred.request(PROMPT)
    assert (request.width, request.height, request.frames, request.fps, request.steps) == (336, 192, 129, 24, 50)
    assert (request.guidance_scale, request.guidance_scale_image, request.guidance_oscillation) == (7.5, 3.0, True)
    assert request.tokens.count == 33 * 12 * 21
    assert Drawing.of(request).prompt_suffix == "24 FPS. 4 motion score."


def test_a_plan_is_of_the_loaded_model(folder: Path, parts: Parts) -> None:
    outline, loaded = Outline.of_folder(folder), Outline.of_parts(load_parts(folder))
    assert outline.loaded.items() >= loaded.loaded.items()
    assert outline.loaded.keys() == {"vae", "transformer", "text_encoder", "text_encoder_2"}
    assert outline.text_rows == loaded.text_rows == opensora.T5_TOKENS
    request = Request("", width=100, height=70, frames=11, guidance_scale_image=3.0)
    where = planning.Setting(torch.device("cpu"), torch.float32, {})
    made, read = (planning.plan(outline, request, dataclasses.replace(where, reads=reads)) for reads in (False, True))
    assert (made.tokens, made.samples, read.samples) == (request.tokens.count, 2, 3)
    assert made.flops == 2 * request.steps * parts.dit.flops(made.tokens, opensora.T5_TOKENS)
    assert str(made.cut) == "4 latent frames at a time, exact"  # all of them: it fits
    rest = planning.weights(outline, where) + planning.LOT + planning.WORKSPACE
    assert read.peak < rest + planning._loosely(outline, request, dataclasses.replace(where, reads=True), made.cut)


def test_what_does_not_fit_whole_is_blended_and_says_so(parts: Parts) -> None:
    pipeline = pipeline_of(parts)
    asked = {"width": 64, "height": 48, "frames": 33, "steps": 1, "prompt_suffix": "{fps} FPS. 4 motion score."}
    exact = pipeline.generate(PROMPT, fps=24, **asked)
    assert "decoded" not in exact.metadata
    pipeline.codec.cuts.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldline.generate.room.fitting_cut", lambda *_: Cut(4, blended=True))
        blended = pipeline.generate(PROMPT, fps=24, **asked)
    assert "approximation" in blended.metadata["decoded"]
    assert blended.frames.shape == exact.frames.shape
    assert not np.array_equal(blended.frames, exact.frames)


def test_the_work_is_that_of_the_matrices(parts: Parts) -> None:
    config, tokens, text = parts.dit.config, 96, 32
    told = Told(
        torch.zeros(text, config.text_width), torch.tensor([0, text]), vector=torch.zeros(1, config.vector_width)
    )
    coords = torch.zeros(tokens, 3, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        parts.dit(torch.zeros(tokens, config.token_width), coords, torch.tensor([0, tokens]), torch.ones(tokens), told)
    # What is of the sample and not of its rows (times, the vector, modulations) is left out.
    assert 0.95 < parts.dit.flops(tokens, text) / counter.get_total_flops() <= 1


def test_suffixes_can_be_others_or_none(parts: Parts) -> None:
    pipeline = pipeline_of(parts)
    asked = {"frames": 1, "height": 32, "width": 32, "steps": 1}
    with pytest.raises(KeyError, match=r"a red ball\. 12 FPS\. 7 motion score\."):
        pipeline.generate(PROMPT, fps=12, prompt_suffix="{fps} FPS. 7 motion score.", **asked)
    with pytest.raises(KeyError, match="'a red ball'"):
        pipeline.generate(PROMPT, prompt_suffix="", **asked)
    pipeline.generate(f" {PROMPT}. ", **asked)


def test_the_command_line_and_info_know_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", str(folder), "--size", "48x32", "--frames", "5", "--steps", "1", "--json"]
    assert main(["generate", PROMPT, *small, "-o", str(tmp_path / "a.mp4")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["guidance_scale_image"], told["model_hash"]) == (3.0, layout.model_hash(folder))
    for name, picture in (("a", A), ("b", B)):
        write_image(tmp_path / f"{name}.png", picture)
    first, last = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    settings = ["--guidance-scale-image", "2", "--no-guidance-oscillation", "--prompt-suffix", ""]
    assert main(["animate", first, PROMPT, *small, *settings, "-o", str(tmp_path / "b.mp4")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["guidance_scale_image"], told["guidance_oscillation"], told["prompt_suffix"]) == (2.0, False, "")
    small[5] = "9"
    assert main(["interpolate", first, last, PROMPT, *small, "-o", str(tmp_path / "c.mp4")]) == 0
    assert read_video(tmp_path / "c.mp4").frames.shape == (9, 32, 48, 3)
    capsys.readouterr()
    assert main(["info", str(folder), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert list(about["components"]) == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    assert all(part["parameters"] > 0 for part in about["components"].values())
    assert about["components"]["transformer"]["config"]["num_heads"] == 2
    assert main(["generate", PROMPT, "--guidance-scale-image", "2"]) == 2  # the shipped model
    assert "not guided by what is known" in capsys.readouterr().err


def test_a_clip_goes_on(parts: Parts) -> None:
    pipeline = pipeline_of(parts)
    clip = Video(np.stack([A] * 9), 24)
    made = edit.extend(pipeline, clip, PROMPT, forward=4 / 24, backward=4 / 24, steps=1)
    assert made.frames.shape == (17, 32, 48, 3)
    assert np.array_equal(made.frames[4:13], clip.frames)


# ---- what is refused, in one line ----------------------------------------------------------------------


MISSING: dict[str, tuple[str, ...]] = {
    "Open_Sora_v2.safetensors": ("Open_Sora_v2.safetensors",),
    "hunyuan_vae.safetensors": ("hunyuan_vae.safetensors",),
    f"{T5}/model.safetensors": (f"{T5}/model.safetensors",),
    f"{T5}/config.json": (f"{T5}/config.json",),
    f"{CLIP}/model.safetensors, {CLIP}/config.json, {CLIP}/tokenizer.json or vocab.json": (CLIP,),
}


def unread(patch: pytest.MonkeyPatch) -> None:
    """No weights can be read from here on."""
    patch.setattr(Weights, "__getitem__", None)
    patch.setattr(opensora, "HFText", None)


def broken_copy(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place / "broken")
    return place / "broken"


@pytest.mark.parametrize("line", MISSING)
def test_what_is_missing_is_one_line(line: str, folder: Path, tmp_path: Path) -> None:
    broken = broken_copy(folder, tmp_path)
    for name in MISSING[line]:
        shutil.rmtree(broken / name) if (broken / name).is_dir() else (broken / name).unlink()
    with pytest.raises(UserError) as caught:
        layout.check(broken)
    assert f"is Open-Sora 2.0's and lacks {line};" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changed", "line"),
    [
        ("Open_Sora_v2.json", {"depth": 3}, "has depth=3; it is 2"),
        ("Open_Sora_v2.json", {"use_liger_rope": False}, "has use_liger_rope=False; it is True"),
        ("Open_Sora_v2.json", {"wormholes": 1}, "unknown field 'wormholes'"),
        ("Open_Sora_v2.json", {"axes_dim": [4, 10, 12]}, "must sum to width / heads = 24"),
        ("Open_Sora_v2.json", {"num_heads": 0}, "a value that cannot be"),
        ("Open_Sora_v2.json", {"num_heads": "two"}, "a value that cannot be"),
        ("Open_Sora_v2.json", {"num_heads": 2.0}, "a value that cannot be"),
        ("Open_Sora_v2.json", {"axes_dim": [12, 12]}, "a value that cannot be"),
        ("Open_Sora_v2.json", {"patch_size": 1}, "its parts do not fit, 16 channels of latents for 64"),
        ("Open_Sora_v2.json", {"patch_size": "one"}, "a value that cannot be"),
        ("hunyuan_vae.json", {"scale_factor": 1.0}, "has scale_factor=1.0; it is 0.476986"),
        ("hunyuan_vae.json", {"norm_num_groups": 3}, "groups=3 does not divide"),
        ("hunyuan_vae.json", {"norm_num_groups": 0}, "groups=0 does not divide"),
        ("hunyuan_vae.json", {"norm_num_groups": "four"}, "groups='four' does not divide"),
        ("hunyuan_vae.json", {"norm_num_groups": 4.0}, "groups=4.0 does not divide"),
        ("hunyuan_vae.json", {"norm_num_groups": None}, "groups=None does not divide"),
        (f"{T5}/config.json", {"d_model": 24}, "24 values of T5's states for 32"),
        (f"{T5}/config.json", {"model_type": "umt5"}, "is of a umt5; the text encoder is a t5"),
        (f"{T5}/config.json", {"num_layers": 10**9}, "1000000000 layers"),
        (f"{CLIP}/config.json", {"hidden_size": 24}, "24 values of CLIP's vector for 16"),
        (f"{CLIP}/config.json", {"model_type": "bert"}, "is of a bert, not of CLIP"),
        (f"{CLIP}/config.json", {"intermediate_size": 24}, "mis-shaped: encoder.layers.0.mlp.fc1.bias (32,) for (24,)"),
    ],
)
def test_configs_that_contradict_the_tensors_are_one_line(
    file: str, changed: dict[str, Any], line: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weights are read."""
    broken = broken_copy(folder, tmp_path)
    (broken / file).write_text(json.dumps({**json.loads((broken / file).read_text()), **changed}))
    unread(monkeypatch)
    with pytest.raises(UserError) as caught:
        Pipeline(load_parts(broken))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_misfits_of_all_parts_are_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = broken_copy(folder, tmp_path)
    names = {"Open_Sora_v2": "img_in.bias", "hunyuan_vae": "decoder.conv_out.conv.bias"}
    names |= {f"{T5}/model": "encoder.final_layer_norm.weight", f"{CLIP}/model": "final_layer_norm.bias"}
    for stem, name in names.items():
        rewrite(broken / f"{stem}.safetensors", lambda held, name=name: {n: held[n] for n in held.keys() - {name}})
    unread(monkeypatch)
    with pytest.raises(UserError) as caught:
        load_parts(broken)
    for name in names.values():
        assert f"missing: {name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_only_read_is_not_written(
    folder: Path, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "no layout to write Open-Sora 2.0 in is known here, it is only read; copy its folder"
    with pytest.raises(UserError, match=line):
        save_pretrained(parts, tmp_path / "out")
    ready = Pipeline(parts, source=folder)
    unread(monkeypatch)
    for layout_name in (None, "diffusers", "worldline"):
        with pytest.raises(UserError, match=line):
            convert(folder, tmp_path / "out", layout_name)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=line):
        ready.save_pretrained(tmp_path / "out")
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "what"), [(TRANSFORMER, "Open-Sora 2.0's transformer"), (VAE, "HunyuanVideo's autoencoder")]
)
def test_one_file_says_what_it_needs(file: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["what"] == what
    for stem in ("Open_Sora_v2.safetensors", "hunyuan_vae.safetensors", T5, CLIP):
        assert stem in told["needs"]
    assert main(["generate", PROMPT, "--model", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"is one file, {what}; it needs" in told
    assert told.count("\n") == 1


def test_tensors_of_something_else_are_one_line(folder: Path, tmp_path: Path) -> None:
    broken = broken_copy(folder, tmp_path)
    whole = layout.model_hash(broken)
    weights = load_file(TRANSFORMER)
    less = {name: value for name, value in weights.items() if name != "img_in.bias"}
    save_file(less, broken / TRANSFORMER.name)
    assert layout.model_hash(broken) != whole
    with pytest.raises(UserError, match=r"missing: img_in\.bias"):
        load_parts(broken)
    save_file({"weight": torch.zeros(2)}, broken / TRANSFORMER.name)
    with pytest.raises(UserError, match="is not Open-Sora"):
        load_parts(broken)
    distilled = {"guidance_in.in_layer.weight": torch.zeros(48, 256)}
    save_file({**weights, **distilled}, broken / TRANSFORMER.name)
    (broken / "Open_Sora_v2.json").write_text('{"num_heads": 2, "axes_dim": [4, 10, 10]}')
    with pytest.raises(UserError, match="distilled from guided answers"):
        load_parts(broken)
    (broken / TRANSFORMER.name).write_bytes(b"\x80\x04" * 99)
    with pytest.raises(UserError, match="damaged or not safetensors"):
        layout.check(broken)
