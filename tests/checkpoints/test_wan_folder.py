"""Folders of the whole Wan family in diffusers' layout generate what diffusers generates: latents and pixels, guided
and with a negative prompt; each published pitfall tells; and what is wrong is told before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.checkpoints import layout
from worldline.checkpoints.folder import load_parts, save_pretrained
from worldline.checkpoints.outline import Outline
from worldline.cli import main
from worldline.dit.conditions import Conditions
from worldline.dit.model import DiT
from worldline.errors import UserError
from worldline.generate import denoiser as denoising
from worldline.generate import edit
from worldline.generate import plan as planning
from worldline.generate.canvas import Canvas, timeline
from worldline.generate.cuts import standard_cut
from worldline.generate.drawing import Drawing
from worldline.generate.load import Deferred
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import Request
from worldline.media.read import Video, read_video
from worldline.media.write import write_image
from worldline.nn.hollow import is_hollow
from worldline.shapes import Grid

for needed in ("diffusers", "transformers", "ftfy", "tokenizers"):
    pytest.importorskip(needed)

from tests.checkpoints.wan_folders import KINDS, NEGATIVE, PROMPT, theirs  # noqa: E402

LIMIT = 1e-5  # relative, of latents after 4 guided steps in fp32; 2e-6 is seen
RNG = np.random.default_rng(0)
A, B = (RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(2))
WIDE = RNG.integers(0, 256, (32, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(family: Callable[[str], Path]) -> Path:
    """Wan 2.1, text to video."""
    return family("text")


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def canvas_of(images: tuple[np.ndarray, ...], frames: int) -> Canvas:
    first, *last = (image[None] for image in images)
    return timeline([first, frames - 1 - len(last), *last])


def pipeline_of(folder: Path, **changed: Any) -> Pipeline:
    return Pipeline(dataclasses.replace(load_parts(folder), **changed), dtype=torch.float32)


def latents(pipeline: Pipeline, frames: int, height: int, width: int, *images: np.ndarray, **asked: Any) -> Tensor:
    """Ours, of 4 steps and the folder's shift."""
    settings = {"guidance_scale": 5.0, "shift": pipeline.parts.scheduler.shift, **asked}
    request = pipeline.request(
        PROMPT, negative_prompt=NEGATIVE, frames=frames, height=height, width=width, steps=4, seed=3, **settings
    )
    assert request.sampler == "unipc"
    condition = pipeline.codec.condition(canvas_of(images, frames)) if images else None
    return pipeline.denoiser.sample([PROMPT], [3], Drawing.of(request), condition)[0]


def call(frames: int, height: int, width: int) -> dict[str, int]:
    return {"num_frames": frames, "height": height, "width": width, "num_inference_steps": 4}


# ---- what diffusers generates --------------------------------------------------------------------


CASES: list[tuple[str, tuple[int, int, int], tuple[np.ndarray, ...]]] = [
    ("text", (9, 32, 48), ()),
    ("text", (5, 48, 32), ()),
    ("text", (1, 32, 32), ()),
    ("image", (9, 32, 32), (A,)),
    ("both ends", (9, 32, 32), (A, B)),
    ("text, experts", (5, 32, 48), ()),
    ("image, experts", (9, 32, 64), (WIDE,)),
    ("image, experts", (9, 32, 32), (A, B)),
    ("text and image", (9, 32, 64), ()),
    ("text and image", (9, 32, 64), (WIDE,)),
]


@pytest.mark.parametrize(("kind", "size", "images"), CASES)
def test_latents_are_wans(
    kind: str, size: tuple[int, int, int], images: tuple[np.ndarray, ...], family: Callable[[str], Path]
) -> None:
    """With the sigmas of Wan's authors."""
    two = {"guidance_scale_2": 2.5} if "experts" in kind else {}
    got = latents(pipeline_of(family(kind)), *size, *images, **two)
    assert error(got, theirs(family(kind), images, **call(*size), **two)) < LIMIT


@pytest.mark.parametrize("kind", ["text", "image", "text and image"])
def test_pixels_are_wans(kind: str, family: Callable[[str], Path]) -> None:
    image = None if kind == "text" else A if kind == "image" else WIDE
    size = (5, 32, 32) if kind == "image" else (5, 32, 64)
    shown = theirs(family(kind), () if image is None else (image,), output_type="np", **call(*size))
    pipeline = pipeline_of(family(kind))
    asked = {"frames": size[0], "height": size[1], "width": size[2], "guidance_scale": 5.0, "steps": 4, "seed": 3}
    request = pipeline.request(PROMPT, negative_prompt=NEGATIVE, **asked)
    if image is None:
        pixels = pipeline.run(request).frames
    else:
        pixels = np.stack(list(pipeline.reel.paint(canvas_of((image,), 5), request, keep=False)))
        assert np.array_equal(pipeline.run(request, image).frames[0], image)
    assert np.abs(pixels / 255 - np.asarray(shown)).max() < 1.5 / 255


def test_interpolation_is_from_the_first_to_the_last_frame(family: Callable[[str], Path]) -> None:
    """The last picture is one frame, not the four of a latent frame."""
    pipeline = pipeline_of(family("both ends"))
    size = {"frames": 9, "height": 32, "width": 32, "steps": 4, "seed": 3, "guidance_scale": 5.0}
    asked = {**size, "negative_prompt": NEGATIVE}
    made = edit.interpolate(pipeline, A, B, PROMPT, reencode=True, **asked).frames
    shown = theirs(family("both ends"), (A, B), output_type="np", **call(9, 32, 32))
    assert np.abs(made / 255 - np.asarray(shown)).max() < 1.5 / 255
    kept = edit.interpolate(pipeline, A, B, PROMPT, **asked).frames
    assert np.array_equal(kept[0], A)
    assert np.array_equal(kept[-1], B)


# ---- the published pitfalls, put back --------------------------------------------------------------


Break = Callable[[Pipeline, pytest.MonkeyPatch], None]


def conditioned(change: Callable[[Conditions], Conditions]) -> Break:
    def put_back(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
        own = pipeline.codec.condition
        patch.setattr(pipeline.codec, "condition", lambda canvas: change(own(canvas)))

    return put_back


def zero_beside(known: Conditions) -> Conditions:
    return dataclasses.replace(known, known=known.known * known.mask.amin(0))


def whole_cells(known: Conditions) -> Conditions:
    return dataclasses.replace(known, mask=known.mask.amax(0).expand_as(known.mask))


def words_alone_are_negative(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    """Without the prompt, the picture is not told either."""
    own = pipeline.denoiser._told

    def told(text: Any, condition: Conditions) -> Any:
        both = own(text, condition)
        rows = len(both.image) // 2
        return both._replace(image=torch.cat([both.image[:rows], torch.zeros_like(both.image[rows:])]))

    patch.setattr(pipeline.denoiser, "_told", told)


def first_picture_alone(known: Conditions) -> Conditions:
    assert known.pictures is not None
    return dataclasses.replace(known, pictures=known.pictures[:5].repeat(2, 1))


def black(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    own = pipeline.codec.encode
    patch.setattr(pipeline.codec, "encode", lambda frames, known=None: own(frames))


def last_layer(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    encoder = pipeline.parts.image
    assert encoder is not None

    def encode(pixels: Tensor) -> Tensor:
        states: Tensor = encoder.model(pixel_values=encoder._ready(pixels), output_hidden_states=True).hidden_states[-1]
        return states

    patch.setattr(encoder, "encode", encode)


def one_time(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    own = denoising.place_known
    patch.setattr(denoising, "place_known", lambda x, t, known, mask: (own(x, t, known, mask)[0], t))


def replaced(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    pipeline.experts.dit.config = dataclasses.replace(pipeline.experts.dit.config, known="noisy")


def swapped(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    assert pipeline.experts.low is not None
    pipeline.experts.dit, pipeline.experts.low = pipeline.experts.low, pipeline.experts.dit


def one_expert(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    pipeline.experts.low = None


def native_order(pipeline: Pipeline, patch: pytest.MonkeyPatch) -> None:
    """The authors list the scale of the low noise first."""
    own = pipeline.denoiser.sample

    def sample(prompts: Any, seeds: Any, drawing: Drawing, condition: Any) -> Any:
        assert drawing.guidance_scale_2 is not None
        scales = {"guidance_scale": drawing.guidance_scale_2, "guidance_scale_2": drawing.guidance_scale}
        return own(prompts, seeds, dataclasses.replace(drawing, **scales), condition)

    patch.setattr(pipeline.denoiser, "sample", sample)


PITFALLS: list[tuple[str, tuple[np.ndarray, ...], Break]] = [
    ("image", (A,), conditioned(zero_beside)),
    ("image", (A,), black),
    ("image", (A,), last_layer),
    ("image", (A,), words_alone_are_negative),
    ("both ends", (A, B), conditioned(whole_cells)),
    ("both ends", (A, B), conditioned(first_picture_alone)),
    ("image, experts", (A,), swapped),
    ("image, experts", (A,), one_expert),
    ("image, experts", (A,), native_order),
    ("text and image", (WIDE,), one_time),
    ("text and image", (WIDE,), replaced),
]


@pytest.mark.parametrize(("kind", "images", "pitfall"), PITFALLS)
def test_a_pitfall_put_back_tells(
    kind: str,
    images: tuple[np.ndarray, ...],
    pitfall: Break,
    family: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = {"guidance_scale_2": 2.5} if "experts" in kind else {}
    size = 5, *images[0].shape[:2]
    expected = latents(pipeline_of(family(kind)), *size, *images, **two)
    broken = pipeline_of(family(kind))
    pitfall(broken, monkeypatch)
    assert error(latents(broken, *size, *images, **two), expected) > 10 * LIMIT


def test_the_boundary_itself_is_high_noise(family: Callable[[str], Path]) -> None:
    """Of diffusers' sigmas at 4 steps and shift 3 one is the timestep 900, which is not below 0.9."""
    folder = family("image, experts")
    scheduler = dataclasses.replace(load_parts(folder).scheduler, spacing="diffusers")
    timesteps = scheduler.times(4, 1, 1)[1]
    assert timesteps is not None
    assert 900 in timesteps.tolist()
    expected = theirs(folder, (A,), "diffusers", **call(5, 32, 32))
    got = latents(pipeline_of(folder, scheduler=scheduler), 5, 32, 32, A, guidance_scale_2=5.0)
    assert error(got, expected) < LIMIT
    late = latents(pipeline_of(folder, scheduler=scheduler, boundary=0.901), 5, 32, 32, A, guidance_scale_2=5.0)
    assert error(late, expected) > 10 * LIMIT


def test_the_shift_of_two_experts_is_the_authors(family: Callable[[str], Path], tmp_path: Path) -> None:
    """In place of the one that diffusers' converter writes, and of no other; `shift` holds instead of either."""
    for kind, shift in (("text, experts", 12.0), ("image, experts", 5.0)):
        defaults = load_parts(family(kind)).defaults
        assert (defaults["shift"], load_parts(family(kind)).scheduler.shift) == (shift, 3.0)
    assert "shift" not in layout.defaults(family("text"))
    folder = Path(shutil.copytree(family("text, experts"), tmp_path / "m"))
    about = folder / "scheduler" / "scheduler_config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "flow_shift": 8.0}))
    assert "shift" not in layout.defaults(folder)
    plain = pipeline_of(family("text, experts"))
    moved = pipeline_of(family("text, experts"), scheduler=dataclasses.replace(plain.parts.scheduler, shift=12.0))
    expected = latents(moved, 5, 32, 32)
    assert torch.equal(latents(plain, 5, 32, 32, shift=12.0), expected)
    size = {"frames": 5, "height": 32, "width": 32, "steps": 4, "guidance_scale": 5.0}
    unsaid = Drawing.of(plain.request(PROMPT, negative_prompt=NEGATIVE, **size))
    assert torch.equal(plain.denoiser.sample([PROMPT], [3], unsaid)[0], expected)
    assert not torch.equal(latents(plain, 5, 32, 32), expected)
    assert plain.record(plain.request(PROMPT))["shift"] == 12.0
    for wrong in (0.0, -1.0, float("nan"), 101.0):
        with pytest.raises(UserError, match="--shift"):
            plain.request(PROMPT, shift=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_expert_is_in_memory_at_a_time(
    dtype: torch.dtype, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the latents are those of two that both are, once and again."""
    folder = family("text, experts")
    read = load_parts(folder)
    assert read.experts is not None
    both = dataclasses.replace(read, low=read.experts[1].load(), experts=None)
    expected = latents(Pipeline(both, dtype=dtype), 5, 32, 32)
    pipeline = Pipeline(load_parts(folder), dtype=dtype, source=folder)
    assert pipeline.experts.low is not None
    awake = []

    def forward(*given: Any, **named: Any) -> Any:
        awake.append([not is_hollow(dit) for dit in (pipeline.experts.dit, pipeline.experts.low)])
        return own(*given, **named)

    own = DiT.forward
    monkeypatch.setattr(DiT, "forward", lambda self, *given, **named: forward(self, *given, **named))
    for _ in range(2):
        assert torch.equal(latents(pipeline, 5, 32, 32), expected)
    assert awake == 2 * ([[True, False]] * 2 + [[False, True]] * 2)
    assert {(value.dtype, value.is_inference()) for value in pipeline.experts.low.parameters()} == {(dtype, False)}
    written = load_parts(save_pretrained(pipeline.parts, tmp_path / "out"))
    assert torch.equal(latents(Pipeline(written, dtype=dtype), 5, 32, 32), expected)


def test_both_experts_stay_where_there_is_room(family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = family("text, experts")
    pipeline = Pipeline(load_parts(folder), dtype=torch.float32, source=folder)
    expected = latents(pipeline, 5, 32, 32)

    def hollow() -> list[bool]:
        return [is_hollow(dit) for dit in (pipeline.experts.dit, pipeline.experts.low) if dit is not None]

    assert hollow() == [True, False]
    pipeline.room.prepare(pipeline.request(PROMPT, width=32, height=32, frames=5))
    for _ in range(2):
        assert torch.equal(latents(pipeline, 5, 32, 32), expected)
        assert hollow() == [False, False]
    monkeypatch.setattr("worldline.generate.room.spare", lambda *_: -1.0)
    pipeline.room.prepare(pipeline.request(PROMPT, width=32, height=32, frames=5))
    assert hollow() == [False, True]
    assert torch.equal(latents(pipeline, 5, 32, 32), expected)
    assert hollow() == [True, False]


# ---- what is known before the weights are read -----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_traits_are_those_of_the_loaded_model(kind: str, family: Callable[[str], Path]) -> None:
    folder = family(kind)
    ready, deferred = pipeline_of(folder), Deferred(folder, layout.defaults(folder))
    for name in ("grid", "driven", "pictures", "defaults", "window"):
        assert getattr(ready, name) == getattr(deferred, name)
    assert ready.grid == (Grid(4, 16) if kind == "text and image" else Grid(4, 8))
    assert ready.pictures == {"image": 1, "image, experts": 1, "both ends": 2}.get(kind, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_of_the_loaded_model(kind: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family(kind)
    outline, parts = Outline.of_folder(folder), load_parts(folder)
    modules = {"vae": parts.vae, "transformer": parts.dit, "transformer_2": parts.low}
    modules |= {"text_encoder": getattr(parts.text, "model"), "image_encoder": getattr(parts.image, "model", None)}  # noqa: B009
    assert outline.loaded == {name: sum(value.nbytes for value in module.parameters())
                              for name, module in modules.items() if module is not None}  # fmt: skip
    assert (outline.dit.config, outline.vae.config) == (parts.dit.config, parts.vae.config)
    again = Outline.of_parts(parts)
    assert (outline.text_rows, outline.image_rows) == (again.text_rows, again.image_rows)
    assert outline.image_rows == {"image": 5, "both ends": 10}.get(kind, 0)
    grid = layout.traits(folder).grid
    request = Request("", width=100, height=70, frames=11, guidance_scale=1.0, guidance_scale_2=2.0, grid=grid)
    where = planning.Setting(torch.device("cpu"), torch.float32, {}, reads=True)
    made = planning.plan(outline, request, where)
    assert (made.tokens, made.samples) == (request.tokens.count, 2)
    assert made.drawn == request.padded
    alone = dataclasses.replace(outline, loaded={k: v for k, v in outline.loaded.items() if k != "transformer_2"})
    assert made.experts == 1 + ("experts" in kind)
    assert made.stages == planning.plan(alone, request, where).stages  # of two experts one is in memory
    cut = standard_cut(*dataclasses.astuple(grid.latent(request.padded))[1:])
    rest = planning.weights(outline, where) + planning.LOT + planning.WORKSPACE
    assert made.peak < rest + planning._loosely(outline, request, where, cut)
    half = save_pretrained(parts, tmp_path / "half", "bfloat16")
    assert (outline.half, Outline.of_folder(half).half) == (None, torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "size", "frames", "fps", "steps", "scales"),
    [
        ("text", (832, 480), 81, 16, 50, (5.0, None)),
        ("image", (832, 480), 81, 16, 40, (5.0, None)),
        ("both ends", (1280, 720), 81, 16, 50, (5.0, None)),
        ("text, experts", (1280, 720), 81, 16, 40, (4.0, 3.0)),
        ("image, experts", (1280, 720), 81, 16, 40, (3.5, 3.5)),
        ("text and image", (1280, 704), 121, 24, 50, (5.0, None)),
    ],
)
def test_defaults_are_the_authors(
    kind: str,
    size: tuple[int, int],
    frames: int,
    fps: int,
    steps: int,
    scales: tuple[float, float | None],
    family: Callable[[str], Path],
) -> None:
    folder = family(kind)
    request = Deferred(folder, layout.defaults(folder)).request(PROMPT)
    assert ((request.width, request.height), request.frames, request.fps, request.steps) == (size, frames, fps, steps)
    assert (request.guidance_scale, request.guidance_scale_2) == scales
    assert "畸形的" in request.negative_prompt
    first = {"image": "镜头晃动，色调", "both ends": "镜头切换，镜头晃动，色调"}.get(kind, "色调")
    assert request.negative_prompt.startswith(first)
    assert request.padded.height % (32 if kind == "text and image" else 16) == 0


def test_sizes_are_padded_to_the_models_own_tokens(family: Callable[[str], Path]) -> None:
    pipeline = pipeline_of(family("text and image"))
    made = pipeline.generate(PROMPT, frames=3, height=40, width=33, steps=1, image=WIDE)
    assert made.frames.shape == (3, 40, 33, 3)
    assert pipeline.request("a", frames=3, height=40, width=33).padded.height == 64


# ---- the command line, and what is refused -----------------------------------------------------------


def test_the_command_line_and_info_know_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    words = ["generate", PROMPT, "--model", str(folder), "--size", "32x32", "--frames", "5", "--steps", "1"]
    assert main([*words, "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampler"] == "unipc"
    assert out.exists()
    assert main(["info", str(folder)]) == 0
    assert "832" in capsys.readouterr().out
    assert main(["generate", PROMPT, "--model", str(folder), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 81
    with pytest.raises(UserError, match="written as diffusers"):
        save_pretrained(load_parts(folder), tmp_path / "copy", layout="worldline")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for name, picture in (("a", A), ("b", B)):
        write_image(tmp_path / f"{name}.png", picture)
    return [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", ["generate", PROMPT, "--image", "A"]),
        ("image", ["generate", PROMPT, "--image", "A"]),
        ("image", ["animate", "A", PROMPT]),
        ("image, experts", ["interpolate", "A", "B", PROMPT]),
        ("image, experts", ["animate", "A", PROMPT, "--guidance-scale-2", "2"]),
        ("both ends", ["interpolate", "A", "B", PROMPT]),
        ("text and image", ["animate", "A", PROMPT]),
        ("text and image", ["interpolate", "A", "B", PROMPT, "--frames", "6"]),
    ],
)
def test_pictures_come_to_life(
    kind: str,
    words: list[str],
    family: Callable[[str], Path],
    pictures: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = dict(zip("AB", pictures, strict=True))
    out = tmp_path / "out.mp4"
    settings = ["--model", str(family(kind)), "--size", "32x32", "--steps", "1", "-o", str(out), "--json"]
    settings += [] if "--frames" in words else ["--frames", "5"]
    assert main([*(names.get(word, word) for word in words), *settings]) == 0
    told, said = capsys.readouterr()
    assert json.loads(told)["known"] == ("replacement" if kind == "text" else "masks")
    assert ("held by replacement" in said) == (kind == "text")
    assert len(read_video(out).frames) == (6 if "6" in words else 5)


def test_a_clip_goes_on(family: Callable[[str], Path]) -> None:
    clip = Video(np.stack([A] * 5), 16)
    for kind in ("image", "image, experts", "text and image"):
        made = edit.extend(pipeline_of(family(kind)), clip, PROMPT, 0.25, steps=1).frames
        assert np.array_equal(made[:5], clip.frames)
        assert len(made) == 9


def test_what_a_model_lacks_is_one_line(
    family: Callable[[str], Path], pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.mp4")
    image, ends = str(family("image")), str(family("both ends"))
    for words, line in (
        (["generate", PROMPT, "--model", image, "--dry-run"], "--image is missing"),
        (["image", PROMPT, "--model", image, "-o", str(tmp_path / "out.png")], "--image is missing"),
        (["generate", PROMPT, "--model", ends, "--image", pictures[0]], "worldline interpolate A B"),
        (["animate", pictures[0], PROMPT, "--model", ends, "-o", out], "worldline interpolate A B"),
        (["generate", PROMPT, "--model", str(family("text")), "--guidance-scale-2", "3"], "one expert"),
        (["generate", PROMPT, "--model", image, "--image", pictures[0], "--long", "sliding"], "--long sliding"),
    ):
        assert main([*words, "--seed", "1"]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert line in said.splitlines()[-1]
        assert said.count("\n") == 1 or "sliding" in words  # which is found out with the model
    pipeline = pipeline_of(family("image"))
    clip = Video(np.stack([A] * 5), 16)
    for ask, line in (
        (lambda: pipeline.generate(PROMPT, frames=5, height=32, width=32), "--image is missing"),
        (lambda: edit.remix(pipeline, clip, PROMPT), "--image is missing"),
        (lambda: edit.extend(pipeline, clip, PROMPT, long="sliding"), "--long sliding"),
        (lambda: edit.extend(pipeline_of(family("both ends")), clip, PROMPT), "worldline interpolate A B"),
    ):
        with pytest.raises(UserError, match=line):
            ask()


def test_an_expert_that_is_missing_or_another_is_told(family: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(family("text, experts"), broken)
    whole = layout.model_hash(broken)
    config = broken / "transformer_2" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "num_attention_heads": 1, "attention_head_dim": 40}))
    assert layout.model_hash(broken) != whole  # both experts are what provenance records
    with pytest.raises(UserError, match="experts differ"):
        load_parts(broken)
    shutil.rmtree(broken / "transformer_2")
    with pytest.raises(UserError, match=r"transformer_2.* is missing"):
        layout.check(broken)


def test_scale_factors_that_do_not_fit_are_told(family: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(family("text and image"), broken)
    config = broken / "vae" / "config.json"
    values = json.loads(config.read_text())
    for factor, line in ((8, "scale factors"), (0, "no cells"), ("many", "no cells")):
        config.write_text(json.dumps({**values, "scale_factor_spatial": factor}))
        with pytest.raises(UserError, match=line):
            load_parts(broken)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_that_do_not_fit_are_one_line(part: str, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (file,) = layout.weight_files(broken, part)
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(UserError, match=f"missing: {name}"):
        load_parts(broken)
    save_file({**weights, name: torch.zeros(2, 3)}, file)
    with pytest.raises(UserError, match=f"mis-shaped: {name}"):
        load_parts(broken)
    save_file(weights, file)
    config = json.loads((broken / part / "config.json").read_text())
    (broken / part / "config.json").write_text(json.dumps({**config, "wormholes": 3}))
    with pytest.raises(UserError, match="wormholes"):
        load_parts(broken)
