"""The folders of Wan's authors, of the whole family: numbers equal to those of a folder in the diffusers layout
give equal latents; what is missing, and the pickles in its place, are told at once; of the hub only what is read is
fetched."""

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

from worldline.checkpoints import layout, wan_vae
from worldline.checkpoints.folder import load_parts, save_pretrained
from worldline.checkpoints.outline import Outline
from worldline.errors import UserError

for needed in ("diffusers", "transformers", "ftfy", "tokenizers"):
    pytest.importorskip(needed)

from tests.checkpoints.test_formats import assert_equal, edit_json, stored, tensors  # noqa: E402
from tests.checkpoints.test_hub import Repository  # noqa: E402
from tests.checkpoints.test_wan_folder import WIDE, A, B, latents, pipeline_of  # noqa: E402
from tests.checkpoints.wan_folders import KINDS, as_published  # noqa: E402

SHIFTS = {"text": 5.0, "image": 3.0, "both ends": 16.0, "text, experts": 12.0, "image, experts": 5.0,
          "text and image": 5.0}  # fmt: skip
PICTURES: dict[str, tuple[Any, ...]] = {"image": (A,), "both ends": (A, B), "image, experts": (A,),
                                        "text and image": (WIDE,)}  # fmt: skip
PUBLISHED = {"vae": "Wan2.1_VAE", "text_encoder": "models_t5_umt5-xxl-enc-bf16",
             "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14"}  # fmt: skip


@pytest.fixture(scope="module")
def both(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A folder of a kind in the diffusers layout, and the same numbers as the authors lay them out."""
    place = tmp_path_factory.mktemp("natives")

    def folders(kind: str) -> tuple[Path, Path]:
        theirs, ours = place / f"{kind} diffusers", place / f"{kind} authors"
        if not ours.exists():
            shutil.copytree(family(kind), theirs)
            mean, std = wan_vae.WHITENING[48 if "tokens" in KINDS[kind] else 16]
            edit_json(theirs / "vae" / "config.json", latents_mean=mean, latents_std=std)
            as_published(kind, theirs, ours)
        return theirs, ours

    return folders


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_folder_is_the_same_model(kind: str, both: Callable[[str], tuple[Path, Path]]) -> None:
    theirs, ours = (load_parts(folder) for folder in both(kind))
    assert_equal(tensors(ours), tensors(theirs))
    assert ours.dit.config == theirs.dit.config
    assert (ours.boundary, ours.defaults) == (theirs.boundary, theirs.defaults)
    assert (ours.scheduler.shift, ours.scheduler.spacing) == (SHIFTS[kind], "authors")
    assert layout.traits(both(kind)[1]) == layout.traits(both(kind)[0])
    a, b = (Outline.of_folder(folder) for folder in both(kind))
    assert (a.loaded, a.text_rows, a.image_rows) == (b.loaded, b.text_rows, b.image_rows)
    images = PICTURES.get(kind, ())
    size = (5, *images[0].shape[:2]) if images else (5, 32, 32)
    drawn = [latents(pipeline_of(folder, scheduler=ours.scheduler), *size, *images) for folder in both(kind)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", ["image", "image, experts", "text and image"])
def test_it_is_written_as_diffusers_has_it(kind: str, both: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    import diffusers

    theirs, ours = both(kind)
    out = save_pretrained(load_parts(ours), tmp_path / "out")
    assert_equal(stored(out), stored(theirs))
    assert_equal(tensors(load_parts(out)), tensors(load_parts(ours)))
    assert load_parts(out).scheduler == load_parts(ours).scheduler
    index = json.loads((out / layout.INDEX).read_text())
    pipe = getattr(diffusers, index["_class_name"]).from_pretrained(out)
    if kind == "image":
        old, new = (json.loads((place / "image_encoder/config.json").read_text()) for place in (theirs, out))
        assert {name: new[name] for name in new if name != "architectures"}.items() <= old.items()
        assert pipe.image_processor.crop_size["height"] == pipe.image_encoder.config.image_size


# ---- what is missing ---------------------------------------------------------------------------


def test_every_pickle_is_named_with_the_way_out(
    both: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the message says to run makes the files that it asks for."""
    place = Path(shutil.copytree(both("image")[1], tmp_path / "m"))
    before = load_parts(place)
    for stem in PUBLISHED.values():
        file = place / f"{stem}.safetensors"
        torch.save(load_file(file), file.with_suffix(".pth"))
        file.unlink()
    with pytest.raises(
        UserError, match=r"lacks Wan2\.1_VAE\.safetensors, models_t5.*, models_clip.*never loaded"
    ) as caught:
        load_parts(place)
    code, files = re.search(r'python -c "(.*)" (\'.*\')$', str(caught.value)).groups()  # type: ignore[union-attr]
    files = re.findall(r"'([^']*)'", files)
    assert files == [str(place / f"{stem}.pth") for stem in PUBLISHED.values()]
    monkeypatch.setattr(sys, "argv", ["-c", *files])
    exec(code, {})
    assert_equal(tensors(load_parts(place)), tensors(before))


def test_a_tower_published_alone_is_read(both: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    place = Path(shutil.copytree(both("image")[1], tmp_path / "m"))
    file = place / f"{PUBLISHED['image_encoder']}.safetensors"
    alone = {name: value for name, value in load_file(file).items() if name.startswith("visual.")}
    save_file(alone, file.with_name(f"{file.stem}-onlyvisual.safetensors"))
    file.unlink()
    assert_equal(tensors(load_parts(place)), tensors(load_parts(both("image")[0])))


def test_what_does_not_fit_is_one_line(both: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(both("image, experts")[1], tmp_path / "experts"))
    shutil.rmtree(wrong / "low_noise_model")
    with pytest.raises(UserError, match=r"lacks low_noise_model/diffusion_pytorch_model\.safetensors$"):
        layout.check(wrong)
    edit_json(wrong / "high_noise_model" / "config.json", model_type="s2v")
    with pytest.raises(UserError, match=r"'s2v'; of its authors' folders with two experts 't2v', 'i2v' are read"):
        layout.check(wrong)
    with pytest.raises(UserError, match=f"one of two experts.*did you mean {wrong}"):
        layout.check(wrong / "high_noise_model")
    wrong = Path(shutil.copytree(both("image")[1], tmp_path / "image"))
    edit_json(wrong / "config.json", model_type="flf2v")
    with pytest.raises(UserError, match="model_type='flf2v', and its tensors are of another"):
        load_parts(wrong)
    edit_json(wrong / "config.json", model_type="i2v")
    file = wrong / f"{PUBLISHED['image_encoder']}.safetensors"
    held = load_file(file)
    held["visual.surplus"] = torch.zeros(1)
    del held["visual.transformer.1.attn.to_qkv.bias"]
    save_file(held, file)
    with pytest.raises(UserError, match=r"missing: encoder.layers.1.self_attn.k_proj.bias, .*; unexpected: surplus"):
        load_parts(wrong)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="no CLIP of Wan's authors"):
        load_parts(wrong)


# ---- the hub -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "text, experts"])
def test_an_id_of_the_authors(
    kind: str, both: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    source = Path(shutil.copytree(both(kind)[1], tmp_path / "repository"))
    for place in (source, source / "high_noise_model", source / "low_noise_model"):
        files = sorted(place.glob("diffusion_pytorch_model-*"))
        if files:
            names = {name: file.name for file in files for name in load_file(file)}
            index = place / "diffusion_pytorch_model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": names}))
    (source / "README.md").write_text("")
    (source / "Wan2.1_VAE.pth").write_bytes(b"")
    held = Repository(source, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", held)
    assert layout.check("org/name") == held.cache
    sound = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    assert held.fetched == sound - {"README.md", "Wan2.1_VAE.pth"}
    # As it is published: no transformer is fetched only to find pickles beside it.
    shutil.rmtree(held.cache)
    for stem in ("Wan2.1_VAE", "models_t5_umt5-xxl-enc-bf16"):
        (source / f"{stem}.safetensors").unlink()
    with pytest.raises(UserError, match=r"\(Wan2.1_VAE.pth, models_t5.*pth\).*org/name-Diffusers") as caught:
        layout.check("org/name@v1")
    assert "\n" not in str(caught.value)
    assert not [name for name in held.fetched if "diffusion_pytorch_model-" in name]
