"""Saving and loading a model folder: nothing changes but rounding, and what does not fit is listed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldline.checkpoints import folder as model_folder
from worldline.checkpoints import layout
from worldline.checkpoints import weights as files_of_weights
from worldline.checkpoints.folder import Parts, export, load_parts, save_pretrained
from worldline.errors import UserError
from worldline.text import ByteEncoder


def modules(parts: Parts) -> list[torch.nn.Module]:
    return [module for module in (parts.vae, parts.dit, parts.text) if isinstance(module, torch.nn.Module)]


@pytest.fixture
def saved(micro_parts: Parts, tmp_path: Path) -> Path:
    return save_pretrained(micro_parts, tmp_path / "model", "float32")


def test_float32_comes_back_bit_for_bit(micro_parts: Parts, saved: Path) -> None:
    back = load_parts(saved)
    for old, new in zip(modules(micro_parts), modules(back), strict=True):
        assert old.state_dict().keys() == new.state_dict().keys()
        assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())
    assert (back.dit.config, back.vae.config) == (micro_parts.dit.config, micro_parts.vae.config)
    assert (back.scheduler, back.defaults) == (micro_parts.scheduler, micro_parts.defaults)
    z = torch.randn(16, 2, 3, 3)
    assert torch.equal(back.whitening.forward(z), micro_parts.whitening.forward(z))
    assert not any(module.training for module in modules(back))


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_types_round_to_their_step(micro_parts: Parts, tmp_path: Path, dtype: str, step: float) -> None:
    back = load_parts(save_pretrained(micro_parts, tmp_path / "m", dtype))
    for old, new in zip(modules(micro_parts), modules(back), strict=True):
        for key, value in old.state_dict().items():
            error = (new.state_dict()[key] - value).abs()
            assert bool((error <= step * value.abs() + 1e-7).all()), key


def test_float16_gives_way_where_it_would_overflow(micro_parts: Parts, tmp_path: Path) -> None:
    stored = files_of_weights._stored(torch.tensor([1e5, 1.0]), torch.float16)
    assert stored.dtype == torch.bfloat16
    assert bool(stored.isfinite().all())


def test_shards_hold_everything_once(micro_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "SHARD_BYTES", 20_000)
    saved = save_pretrained(micro_parts, tmp_path / "m", "float32")
    files = layout.weight_files(saved, "transformer")
    assert len(files) > 2
    index = json.loads((saved / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    for key, file in index["weight_map"].items():
        assert key in load_file(saved / "transformer" / file)
    names = [key for file in files for key in load_file(file)]
    assert sorted(names) == sorted(micro_parts.dit.state_dict()) == sorted(index["weight_map"])
    load_parts(saved)


def test_every_misfit_is_listed_at_once(saved: Path) -> None:
    file = saved / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["head.weights"] = weights.pop("head.weight")
    weights["embed.bias"] = torch.zeros(3)
    save_file(weights, file)
    with pytest.raises(UserError, match=r"missing: head\.weight;.*unexpected: head\.weights;.*mis-shaped: embed\.bias"):
        load_parts(saved)


def test_a_config_of_another_version_names_the_field(saved: Path) -> None:
    file = saved / "transformer/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "widht": 3}))
    with pytest.raises(UserError, match=r"'widht'; width\?"):
        load_parts(saved)


def test_an_encoder_without_weights(micro_parts: Parts, tmp_path: Path) -> None:
    saved = save_pretrained(replace(micro_parts, text=ByteEncoder(16)), tmp_path / "m")
    assert isinstance(load_parts(saved).text, ByteEncoder)


def test_a_failed_save_leaves_the_old_folder(saved: Path, micro_parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout.model_hash(saved)
    with pytest.raises(UserError, match="exists"):
        save_pretrained(micro_parts, saved)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_of_weights, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(micro_parts, saved, overwrite=True)
    assert layout.model_hash(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_overwriting_keeps_the_model_card(saved: Path, micro_parts: Parts) -> None:
    (saved / "README.md").write_text("# Card")
    save_pretrained(micro_parts, saved, "bfloat16", overwrite=True)
    assert (saved / "README.md").read_text() == "# Card"
    assert layout.info(saved)["components"]["vae"]["dtypes"] == ["BF16"]


def test_export_takes_a_better_decoder_but_no_other_encoder(saved: Path, micro_parts: Parts, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved.rename(run / "model")
    weights = {key: value.contiguous().clone() for key, value in micro_parts.vae.state_dict().items()}
    weights["decoder.head.bias"] += 1
    place = tmp_path / "vae-run" / "vae"
    place.mkdir(parents=True)
    (place / "config.json").write_text((run / "model/vae/config.json").read_text())
    save_file(weights, place / "diffusion_pytorch_model.safetensors")
    out = export(run, tmp_path / "shipped", vae=tmp_path / "vae-run", dtype="float32", defaults={"steps": 9})
    back = load_parts(out)
    assert torch.equal(back.vae.state_dict()["decoder.head.bias"], weights["decoder.head.bias"])
    assert back.defaults["steps"] == 9

    weights["encoder.pca.bias"] += 1
    save_file(weights, place / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="encoder differs"):
        export(run, tmp_path / "other", vae=tmp_path / "vae-run")
