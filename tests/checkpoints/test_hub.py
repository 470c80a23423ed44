"""Hub ids: only what is read is fetched, configs first, and what cannot be had is one line. No network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from worldline.checkpoints import families, hub, layout
from worldline.cli import main
from worldline.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

NOISE = ("README.md", "transformer/pytorch_model.bin", "vae/model.pt", "assets/film.mp4", "text_encoder/model.fp16.bin",
         "transformer/diffusion_pytorch_model.fp16.safetensors")  # fmt: skip


class Repository:
    """A repository as `snapshot_download` sees it: what matches is copied into the cache."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache = source, cache
        self.calls: list[tuple[str, str | None]] = []

    def __call__(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append((repo, revision))
        self.cache.mkdir(exist_ok=True)
        for file in self.source.rglob("*"):
            name = file.relative_to(self.source).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.cache / name)
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        return {file.relative_to(self.cache).as_posix() for file in self.cache.rglob("*") if file.is_file()}


@pytest.fixture
def repository(tmp_path: Path, skeleton: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Repository:
    source = skeleton(tmp_path / "repository")
    for name in (*NOISE, "tokenizer/tokenizer.json", "tokenizer/spiece.model"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"{}")
    made = Repository(source, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made)
    return made


def test_only_what_is_read_is_fetched(repository: Repository) -> None:
    assert layout.check("org/name@v1.0") == repository.cache
    assert set(repository.calls) == {("org/name", "v1.0")}
    sound = {file.relative_to(repository.source).as_posix() for file in repository.source.rglob("*") if file.is_file()}
    assert repository.fetched == sound - set(NOISE)


def test_optional_parts_are_fetched_where_the_index_names_them(repository: Repository) -> None:
    for part, stem in families.OPTIONAL.items():
        (repository.source / part).mkdir()
        (repository.source / part / "config.json").write_text("{}")
        shutil.copy(
            repository.source / "vae/diffusion_pytorch_model.safetensors",
            repository.source / part / f"{stem}.safetensors",
        )
    layout.check("org/name")
    assert not [name for name in repository.fetched if name.startswith("transformer_2") and "safetensors" in name]
    index = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "image_encoder": ["transformers", "CLIP"]}
    values = json.loads((repository.source / layout.INDEX).read_text())
    (repository.source / layout.INDEX).write_text(json.dumps({**values, **index}))
    layout.check("org/name")
    for part, stem in families.OPTIONAL.items():
        assert f"{part}/{stem}.safetensors" in repository.fetched
    (repository.source / "transformer_2/diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(repository.cache)
    with pytest.raises(UserError, match=r"transformer_2/.*\.safetensors is not to be had"):
        layout.check("org/name")


def test_shards_are_those_of_the_index(repository: Repository) -> None:
    place = repository.source / "transformer"
    whole = place / "diffusion_pytorch_model.safetensors"
    whole.rename(place / "diffusion_pytorch_model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
    (place / f"{whole.name}.index.json").write_text(json.dumps(index))
    layout.check("org/name")
    assert "transformer/diffusion_pytorch_model-00001-of-00001.safetensors" in repository.fetched
    assert repository.calls[0] == ("org/name", None)


def test_a_model_that_is_not_readable_costs_no_weights(repository: Repository) -> None:
    (repository.source / layout.INDEX).write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="FluxPipeline"):
        layout.check("org/name")
    assert not [name for name in repository.fetched if name.endswith(".safetensors")]
    (repository.source / layout.INDEX).unlink()
    shutil.rmtree(repository.cache)
    with pytest.raises(UserError, match=r"org/name holds no model_index\.json.*pickles"):
        layout.check("org/name")
    assert not [name for name in repository.fetched if name.endswith(".safetensors")]


def test_a_part_that_is_not_in_the_cache(repository: Repository) -> None:
    (repository.source / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vae/diffusion_pytorch_model\.safetensors is not to be had"):
        layout.check("org/name")


def test_an_encoder_without_weights_needs_none(repository: Repository) -> None:
    (repository.source / "text_encoder/model.safetensors").unlink()
    assert layout.check("org/name") == repository.cache


def test_a_folder_comes_before_an_id(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repository.source, tmp_path / "org" / "name")
    assert layout.check("org/name") == Path("org/name")
    with pytest.raises(UserError, match="does not exist"):
        layout.check(Path("org/other"))  # a Path is never an id
    assert not repository.calls


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("LocalEntryNotFoundError", "neither a folder nor in the hub's cache"),
        ("OfflineModeIsEnabled", "cannot be fetched (no)"),
        ("RepositoryNotFoundError", "neither a folder nor a model of the hub"),
        ("GatedRepoError", "accept its terms"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("HfHubHTTPError", "cannot be fetched (HfHubHTTPError)"),
        ("HFValidationError", "cannot be fetched (no)"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    kind: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise getattr(errors, kind).__new__(getattr(errors, kind), "no\nsuch")  # some want a response to be made

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert main(["generate", "a red ball", "--model", "org/name@v9"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_offline_reads_the_cache_and_nothing_else(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real `snapshot_download` on a cache as it lays one out, told to be offline."""
    from huggingface_hub import constants

    monkeypatch.undo()
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder nor in the hub's cache, and the hub is out of reach"):
        layout.check("org/name")
    entry = cache / "models--org--name"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    shutil.copytree(repository.source, entry / "snapshots" / ("0" * 40))
    assert layout.check("org/name") == entry / "snapshots" / ("0" * 40)
    assert layout.info("org/name")["parameters"] == 18


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "./a/b", "/a/b", "org/", "/name", "org/na me", "org/name@", "~x/y", "a" * 9999]
)
def test_what_is_no_id_is_a_folder(name: str, repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert not hub.is_id(name)
    assert main(["info", name]) == 2
    assert "does not exist; give a folder that holds model_index.json, or a hub id" in capsys.readouterr().err
    assert not repository.calls
