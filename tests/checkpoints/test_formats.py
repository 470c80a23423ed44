"""Checkpoints come in as they are published and go out as diffusers opens them, bit for bit; what does not fit in any
part is told at once, from headers alone."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import worldline
from tests.checkpoints.wan_folders import KINDS, PROMPT, as_published, make
from worldline.checkpoints import layout, weights
from worldline.checkpoints.folder import Parts, load_parts, save_pretrained
from worldline.checkpoints.weights import Weights
from worldline.cli import main
from worldline.errors import UserError
from worldline.generate.pipeline import Pipeline

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("ftfy")

FILES = {"transformer": "transformer/diffusion_pytorch_model.safetensors",
         "vae": "vae/diffusion_pytorch_model.safetensors",
         "text_encoder": "text_encoder/model.safetensors"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def native(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same numbers as the authors of Wan 2.1 lay them out."""
    return as_published("text", folder, tmp_path_factory.mktemp("native") / "Wan2.1-T2V-tiny")


def tensors(parts: Parts) -> dict[str, Tensor]:
    """All that a model computes with."""
    modules = {"vae": parts.vae, "dit": parts.dit, "text": parts.text.model}
    modules["low"] = parts.experts and parts.experts[1].load()
    modules["image"] = parts.image and parts.image.model
    found = {f"{part}.{name}": value for part, held in modules.items() if held
             for name, value in held.state_dict().items()}  # fmt: skip
    return {**found, "mean": parts.whitening.mean, "std": parts.whitening.std / parts.whitening.gain}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert torch.equal(value, b[name]), name


def stored(folder: Path) -> dict[str, Tensor]:
    """What a folder in diffusers' layout holds."""
    return {
        f"{part}/{name}": value
        for part in layout.weighty(folder)
        for file in layout.weight_files(folder, part)
        for name, value in load_file(file).items()
    }


# ---- in and out --------------------------------------------------------------------------------


def test_the_authors_folder_is_the_same_model(native: Path, folder: Path, tmp_path: Path) -> None:
    ours, theirs = load_parts(native), load_parts(folder)
    assert_equal(tensors(ours), tensors(theirs))
    assert ours.dit.config == theirs.dit.config
    assert ours.defaults == theirs.defaults
    assert (ours.scheduler.shift, ours.scheduler.spacing) == (5.0, "authors")  # of their generate.py
    assert torch.equal(ours.text.encode([PROMPT]).states, theirs.text.encode([PROMPT]).states)
    assert layout.traits(native) == layout.traits(folder)
    words = ["generate", PROMPT, "--model", str(native), "--size", "32x32", "--frames", "1", "--steps", "1"]
    assert main([*words, "-o", str(tmp_path / "out.mp4")]) == 0
    told = layout.info(native)
    assert told["parameters"] == layout.info(folder)["parameters"]
    assert told["hash"] != layout.info(folder)["hash"]


def test_diffusers_opens_what_is_written(native: Path, folder: Path, tmp_path: Path) -> None:
    """The authors' folder becomes diffusers': its tensors are those of the first, bit for bit, and come back so."""
    pytest.importorskip("accelerate")
    out = tmp_path / "out"
    assert main(["convert", str(native), str(out), "--layout", "diffusers"]) == 0
    assert_equal(stored(out), stored(folder))
    assert_equal(tensors(load_parts(out)), tensors(load_parts(native)))
    assert load_parts(out).scheduler == load_parts(native).scheduler
    pipe = diffusers.WanPipeline.from_pretrained(out)
    held = {f"{part}/{name}": value for part in FILES for name, value in getattr(pipe, part).state_dict().items()}
    assert_equal({name: value for name, value in held.items() if "embed_tokens" not in name}, stored(folder))
    assert pipe.scheduler.config.flow_shift == 5.0
    assert pipe.tokenizer(PROMPT).input_ids == load_parts(out).text.tokenizer(PROMPT).input_ids
    means = [torch.tensor(held.config.latents_mean) for held in (pipe.vae, diffusers.AutoencoderKLWan())]
    assert torch.equal(*means)


def test_what_diffusers_writes_comes_back(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    pipe = diffusers.WanPipeline.from_pretrained(folder, tokenizer=tokenizer)
    pipe.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs/transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert_equal(tensors(load_parts(tmp_path / "theirs")), tensors(load_parts(folder)))


def test_a_pipeline_writes_what_was_read(folder: Path, tmp_path: Path) -> None:
    """Not what its own type of numbers has made of it; in shards, and whole or not at all."""
    pipeline = worldline.load(folder)
    assert {value.dtype for value in pipeline.experts.dit.state_dict().values()} == {pipeline.dtype}
    assert_equal(stored(pipeline.save_pretrained(tmp_path / "a", layout="diffusers")), stored(folder))
    with pytest.raises(UserError, match="no such layout; it is written as diffusers"):
        pipeline.save_pretrained(tmp_path / "b", layout="worldline")
    with pytest.raises(UserError, match="exists"):
        pipeline.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_nothing_of_the_family_is_left_out(kind: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    """Both experts and their boundary, times of tokens, CLIP and its processor go out and come back, bit for bit."""
    source, before = family(kind), load_parts(family(kind))
    out = save_pretrained(before, tmp_path / "out")
    assert_equal(stored(out), stored(source))
    old, new = (json.loads((place / layout.INDEX).read_text()) for place in (source, out))
    assert {name: new[name] for name in old} == {**old, "tokenizer": new["tokenizer"]}
    after = load_parts(out)
    assert_equal(tensors(after), tensors(before))
    for name in ("boundary", "scheduler", "defaults"):
        assert getattr(after, name) == getattr(before, name)
    assert after.dit.config == before.dit.config
    half = save_pretrained(before, tmp_path / "half", "bfloat16")
    assert {value.dtype for value in stored(half).values()} == {torch.bfloat16}
    pipeline = worldline.load(half)
    assert pipeline.experts.low is pipeline.parts.low  # held once


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_diffusers_opens_the_family(kind: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    out = save_pretrained(load_parts(family(kind)), tmp_path / "out")
    index = json.loads((out / layout.INDEX).read_text())
    pipe = getattr(diffusers, index["_class_name"]).from_pretrained(out)
    held = {f"{part}/{name}": value for part in layout.weighty(out)
            for name, value in getattr(pipe, part).state_dict().items()}  # fmt: skip
    assert_equal({name: value for name, value in held.items() if "embed_tokens" not in name}, stored(family(kind)))
    assert pipe.config.boundary_ratio == KINDS[kind].get("boundary")
    assert pipe.config.expand_timesteps == KINDS[kind].get("tokens", False)
    if "clip" in KINDS[kind]:
        assert pipe.image_processor.crop_size["height"] == pipe.image_encoder.config.image_size


def test_a_processor_that_diffusers_needs_is_missed_before_writing(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    """Here it is not read, so that a folder without it is a model."""
    source = Path(shutil.copytree(family("image"), tmp_path / "m"))
    shutil.rmtree(source / "image_processor")
    with pytest.raises(UserError, match=r"image_processor is missing, and diffusers"):
        save_pretrained(load_parts(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_our_own_model_has_no_other_layout(
    micro_parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = save_pretrained(micro_parts, tmp_path / "own", "float32")
    assert main(["convert", str(own), str(tmp_path / "x"), "--layout", "diffusers"]) == 2
    assert "it is written as worldline" in capsys.readouterr().err
    assert main(["convert", str(own), str(tmp_path / "x"), "--dtype", "float32"]) == 0
    for part in FILES:
        (old,), (new,) = (layout.weight_files(place, part) for place in (own, tmp_path / "x"))
        assert old.read_bytes() == new.read_bytes()


def test_shards_of_a_public_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worldline.checkpoints import wan

    monkeypatch.setattr(wan, "SHARD_BYTES", 40_000)
    out = save_pretrained(load_parts(folder), tmp_path / "out")
    assert all(len(layout.weight_files(out, part)) > 2 for part in ("transformer", "vae"))
    modes = {file.stat().st_mode for file in (out / "transformer").iterdir()}
    assert len(modes) == 1  # who may read the configs may read the weights
    assert_equal(stored(out), stored(folder))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_stays_and_is_held_once(name: str, folder: Path, tmp_path: Path) -> None:
    half = getattr(torch, name)
    halved = save_pretrained(load_parts(folder), tmp_path / "half", name)
    assert {value.dtype for value in stored(halved).values()} == {half}
    parts = load_parts(halved)
    assert {parts.dit.embed.weight.dtype, next(parts.vae.parameters()).dtype} == {half}
    assert parts.text.model.dtype == torch.bfloat16  # umT5 leaves the range of float16
    pipeline = worldline.load(halved)
    assert pipeline.dtype == half
    assert pipeline.experts.dit is pipeline.parts.dit
    assert pipeline.codec.vae is pipeline.parts.vae
    assert pipeline.generate(PROMPT, frames=1, width=32, height=32, steps=1).frames.shape == (1, 32, 32, 3)
    copied = Pipeline(parts, dtype=torch.float32)
    assert parts.dit.embed.weight.dtype == half
    assert copied.experts.dit.embed.weight.dtype == torch.float32


# ---- what does not fit -------------------------------------------------------------------------


def edit(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]) -> None:
    held = load_file(file)
    save_file(change(held) or held, file)


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_misfits_of_all_parts_are_told_before_a_weight_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Path(shutil.copytree(folder, tmp_path / "m"))
    edit(wrong / FILES["transformer"], lambda held: {k: v for k, v in held.items() if k != "proj_out.bias"})
    edit(wrong / FILES["vae"], lambda held: {**held, "surplus": torch.zeros(1)})
    edit(wrong / FILES["text_encoder"], lambda held: {**held, "shared.weight": torch.zeros(2, 3)})

    def never(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(weights, "safe_open", never)
    with pytest.raises(UserError) as caught:
        load_parts(wrong)
    told = str(caught.value)
    for part, misfit in (
        ("transformer", "missing: proj_out.bias"),
        ("vae", "unexpected: surplus"),
        ("text_encoder", "mis-shaped: shared.weight (2, 3) for (16, 16)"),
    ):
        assert f"{part} does not fit its config: {misfit}" in told
    assert "\n" not in told


def test_misfits_of_the_familys_parts_are_told_as_well(
    family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "safe_open", None)
    for kind, part, name in (
        ("image, experts", "transformer_2", "proj_out.bias"),
        ("image", "image_encoder", "pre_layrnorm.bias"),
    ):
        wrong = Path(shutil.copytree(family(kind), tmp_path / part))
        (file,) = layout.weight_files(wrong, part)
        edit(wrong / FILES["vae"], lambda held: {**held, "surplus": torch.zeros(1)})
        edit(file, lambda held, name=name: {**held, name: torch.zeros(3)})
        with pytest.raises(UserError, match="unexpected: surplus") as caught:
            load_parts(wrong)
        assert f"{part} does not fit its config: mis-shaped: {name} (3,)" in str(caught.value)


def test_an_image_encoder_as_it_is_published(family: Callable[[str], Path], tmp_path: Path) -> None:
    """With the prefix of older transformers, and with a projection that is not read."""
    other = Path(shutil.copytree(family("image"), tmp_path / "m"))
    (file,) = layout.weight_files(other, "image_encoder")
    projection = {"visual_projection.weight": torch.zeros(4, 12)}
    edit(file, lambda held: {f"vision_model.{name}": value for name, value in held.items()} | projection)
    assert_equal(tensors(load_parts(other)), tensors(load_parts(family("image"))))
    out = save_pretrained(load_parts(other), tmp_path / "out")
    assert_equal(stored(out), stored(other))


def test_our_own_misfits_are_told_the_same_way(
    micro_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save_pretrained(micro_parts, tmp_path / "own")
    for part in FILES:
        (file,) = layout.weight_files(own, part)
        edit(file, lambda held: {**held, "surplus": torch.zeros(1)})
    monkeypatch.setattr(weights, "safe_open", None)
    with pytest.raises(UserError) as caught:
        load_parts(own)
    assert str(caught.value).count("unexpected: surplus") == 3


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")]
)
def test_quantised_weights_are_refused(dtype: torch.dtype, name: str, folder: Path, tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(folder, tmp_path / "m"))
    edit(wrong / FILES["transformer"], lambda held: {**held, "proj_out.weight": held["proj_out.weight"].to(dtype)})
    with pytest.raises(UserError, match=rf"quantised or whole numbers.*: proj_out\.weight {name}"):
        load_parts(wrong)


def test_a_tensor_in_two_files(folder: Path, tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(folder, tmp_path / "m"))
    file = wrong / FILES["transformer"]
    for i in (1, 2):
        shutil.copy(file, file.with_name(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"))
    file.unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors holds .*, and so does"):
        load_parts(wrong)


SHARDS = {  # what an index of shards says, and what is told
    "missing": ({"weight_map": {"a": "gone.safetensors"}}, "names gone.safetensors, which is missing"),
    "outside": ({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}, "no safetensors file beside it"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "no safetensors file beside it"),
    "a pickle": ({"weight_map": {"a": "diffusion_pytorch_model.bin"}}, "no safetensors file beside it"),
    "NUL": ({"weight_map": {"a": "a\0.safetensors"}}, "no safetensors file beside it"),
    "numbers": ({"weight_map": {"a": 1}}, "no weight_map"),
    "nothing": ({}, "no weight_map"),
}


@pytest.mark.parametrize(("index", "told"), SHARDS.values(), ids=SHARDS.keys())
def test_an_index_of_shards_names_files_beside_it(
    index: dict[str, Any], told: str, tmp_path: Path, skeleton: Callable[[Path], Path]
) -> None:
    folder = skeleton(tmp_path / "m")
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=told):
        layout.check(folder)


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown class of a part": (
        "model_index.json",
        {"vae": ["diffusers", "AutoencoderKLMagvit"]},
        "AutoencoderKLMagvit",
    ),
    "no class": ("model_index.json", {"_class_name": ["WanPipeline"]}, "which is not readable here"),
    "unknown scheduler": ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "DDIMScheduler"),
    "another prediction": ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "epsilon"),
    "a shift that is text": ("scheduler/scheduler_config.json", {"flow_shift": "three"}, "scheduler.*three"),
    "layers that are text": ("transformer/config.json", {"num_layers": "2"}, "transformer.*value that cannot be"),
    "no heads": ("transformer/config.json", {"num_attention_heads": 0}, "transformer.*value that cannot be"),
    "levels that are text": ("vae/config.json", {"dim_mult": "wide"}, "vae.*value that cannot be"),
    "a boundary that is text": ("model_index.json", {"boundary_ratio": "high"}, "model_index.*value that cannot be"),
    "a second expert of another class": ("model_index.json", {"transformer_2": ["diffusers", "X"]}, "transformer_2"),
    "another encoder": ("text_encoder/config.json", {"model_type": "bert"}, "of a bert"),
    "a thousand million layers": ("transformer/config.json", {"num_layers": 10**9}, "1000000000 layers, and its files"),
    "as many of the encoder": ("text_encoder/config.json", {"num_layers": 10**9}, "1000000000 layers, and its files"),
    "as many blocks": ("vae/config.json", {"num_res_blocks": 10**9}, "1000000000 layers, and its files"),
    "a third layer": ("transformer/config.json", {"num_layers": 3}, r"missing: blocks\.2\.attn1.* and 21 more"),
}


@pytest.mark.parametrize(("file", "values", "told"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_config_that_cannot_be(file: str, values: dict[str, Any], told: str, folder: Path, tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(folder, tmp_path / "m"))
    edit_json(wrong / file, **values)
    with pytest.raises(UserError, match=told) as caught:
        load_parts(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("transformer/config.json", {"depth": 10**9}, "1000000000 layers"),
        ("text_encoder/config.json", {"layers": 10**9}, "1000000000 layers"),
        ("transformer/config.json", {"depth": "2"}, "depth='2', which is not of the kind of 6"),
        ("transformer/config.json", {"heads": 0}, "value that cannot be"),
        ("transformer/config.json", {"masks": 1}, "masks=1"),
        ("transformer/config.json", {"known": 3}, "known=3"),
        ("scheduler/scheduler_config.json", {"shift": None}, "shift=None"),
        ("vae/config.json", {"whitening": 3}, "whitening"),
        ("text_encoder/config.json", {"_class_name": "BERT"}, "BERT"),
    ],
)
def test_our_own_config_that_cannot_be(
    file: str, values: dict[str, Any], told: str, micro_parts: Parts, tmp_path: Path
) -> None:
    own = save_pretrained(micro_parts, tmp_path / "own")
    edit_json(own / file, **values)
    with pytest.raises(UserError, match=told):
        load_parts(own)


def test_how_what_is_known_was_taught_comes_back(micro_parts: Parts, tmp_path: Path) -> None:
    own = save_pretrained(micro_parts, tmp_path / "own")
    edit_json(own / "transformer/config.json", known="noisy")
    assert load_parts(own).dit.config.known == "noisy"


# ---- the authors' folder -----------------------------------------------------------------------


def test_pickles_are_refused_with_the_way_out(native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the message says to run makes the file that it asks for."""
    place = Path(shutil.copytree(native, tmp_path / "m"))
    vae = place / "Wan2.1_VAE.safetensors"
    torch.save(load_file(vae), vae.with_suffix(".pth"))
    before = load_file(vae)
    vae.unlink()
    shutil.rmtree(place / "google")
    with pytest.raises(UserError, match=r"lacks Wan2\.1_VAE\.safetensors, google/umt5-xxl/tokenizer\.json") as caught:
        load_parts(place)
    code = re.search(r'python -c "(.*)" \'(.*)\'', str(caught.value))
    assert code is not None
    monkeypatch.setattr(sys, "argv", ["-c", code[2]])
    exec(code[1], {})
    assert_equal(load_file(vae), before)
    with pytest.raises(UserError, match=r"lacks google/umt5-xxl/tokenizer\.json$"):
        load_parts(place)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "vace"}, "'t2v', 'i2v', 'flf2v', 'ti2v' are read"),
        ({"_class_name": "WanVaceModel"}, "WanVaceModel"),
        ({"wormholes": 3}, "wormholes"),
        ({"text_len": 77}, "text_len=77"),
        ({"num_layers": 3}, "missing: blocks.2."),
        ({"num_heads": 3}, "rope_axes|mis-shaped|cannot be"),
        ({"ffn_dim": 65}, r"mis-shaped: blocks\.0\.ffn"),
    ],
)
def test_an_authors_config_that_cannot_be(values: dict[str, Any], told: str, native: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(native, tmp_path / "m"))
    edit_json(place / "config.json", **values)
    with pytest.raises(UserError, match=told):
        load_parts(place)


# ---- one file, or nothing ----------------------------------------------------------------------

SINGLE = {
    "transformer": ("folder", "Wan's transformer under diffusers' names"),
    "vae": ("folder", "Wan's autoencoder under diffusers' names"),
    "text_encoder": ("folder", "a T5 text encoder"),
    "Wan2.1_VAE": ("native", "Wan 2.1's autoencoder under its authors' names"),
    "models_t5_umt5-xxl-enc-bf16": ("native", "umT5 under the names of Wan's authors"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_file_is_described(name: str, folder: Path, native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, what = SINGLE[name]
    file = folder / FILES[name] if where == "folder" else native / f"{name}.safetensors"
    assert main(["info", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["what"], told["dtypes"]) == (what, ["F32"])
    assert told["parameters"] == sum(value.numel() for value in load_file(file).values())
    assert main(["info", str(file)]) == 0
    assert f"{what}: " in capsys.readouterr().out
    assert main(["generate", PROMPT, "--model", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"is one file, {what}; it needs" in told
    assert told.count("\n") == 1


def test_a_part_is_not_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"WanTransformer3DModel, not WanModel: .*; did you mean {folder}"):
        layout.check(folder / "transformer")
    save_file({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match=r"pytorch_lora_weights.safetensors in it is a LoRA"):
        layout.check(tmp_path)
    wrong = Path(shutil.copytree(folder, tmp_path / "m"))
    edit(wrong / FILES["transformer"], lambda held: {f"{name}.lora_down": value for name, value in held.items()})
    with pytest.raises(UserError, match=r"transformer/.*\.safetensors is a LoRA"):
        layout.check(wrong)


def test_weights_are_read_when_asked_for(folder: Path) -> None:
    held = Weights([folder / FILES["vae"]])
    assert len(held) == len(load_file(folder / FILES["vae"])) > 0
    assert not held._open
    assert {value.device.type for value in held.shapes.values()} == {"meta"}
    assert_equal(dict(held), load_file(folder / FILES["vae"]))
