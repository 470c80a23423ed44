"""Models of the Hugging Face hub, by id: fetched into its cache once, and only the files that are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from worldline.checkpoints import families, layout
from worldline.errors import UserError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ID = re.compile(rf"{NAME}/{NAME}(@[A-Za-z0-9][A-Za-z0-9._/-]*)?")
CONFIGS = (layout.INDEX, "config.json", "*.index.json", "*/*.json", "tokenizer*/*.model", "tokenizer*/*.txt")


def is_id(name: str) -> bool:
    """Whether a name has the form org/name or org/name@revision."""
    return ID.fullmatch(name) is not None


def fetch(name: str) -> Path:
    """The folder of a model in the hub's cache, which `huggingface_hub` fills and continues: in the diffusers layout,
    or that of Wan's authors.

    Configs come first, so that a model that is not readable here costs no download of weights. Raises UserError for
    what is neither in the cache nor to be had, for other layouts, and for pickles before a transformer is fetched.
    """
    folder = _snapshot(name, CONFIGS)
    if layout.is_native(folder):
        return _native(name, folder)
    if not (folder / layout.INDEX).is_file():
        raise UserError(
            f"--model {name} holds no {layout.INDEX}, nor the config.json of a model of Wan's authors: of the hub's "
            f"models those in the diffusers layout are read, such as {layout.EXAMPLE}, and theirs; fetch others "
            "yourself, and convert their pickles"
        )
    layout.check_index(folder)
    parts = [part for part in layout.weighty(folder) if (folder / part).is_dir()]
    folder, missing = _fetched(name, folder, {part: (folder / part, families.STEMS[part]) for part in parts})
    missing = [file for file in missing if not file.startswith("text_encoder/model.")]
    if missing:
        raise UserError(f"--model {name}: {missing[0]} is not to be had, and not in the cache; try again when online")
    return folder


def _native(name: str, folder: Path) -> Path:
    """The folder of Wan's authors whose configs are there, with its weights: the transformers last."""
    places = {part: (layout.native_place(folder, part), stem) for part, stem in layout.native(folder).stems.items()}
    dits = {part: places.pop(part) for part in families.NATIVE_EXPERTS if part in places}
    folder, missing = _fetched(name, folder, places)
    if missing:
        pickles, repo = ", ".join(f"{Path(file).stem}.pth" for file in missing), name.partition("@")[0]
        raise UserError(
            f"--model {name}: {', '.join(missing)} are not to be had; what its authors publish are pickles "
            f"({pickles}), which are never loaded. Take {repo}-Diffusers, or `hf download {repo} --local-dir FOLDER` "
            "and give --model FOLDER, which says how to convert them"
        )
    folder, missing = _fetched(name, folder, dits)
    if missing:
        raise UserError(f"--model {name}: {missing[0]} is not to be had, and not in the cache; try again when online")
    return folder


def _fetched(name: str, folder: Path, places: Mapping[str, tuple[Path, str]]) -> tuple[Path, list[str]]:
    """The folder with the weights of parts, by where in it they lie and their stems; and those not to be had."""
    files = [file for place, stem in places.values() for file in _weights(folder, place, stem)]
    folder = _snapshot(name, files)
    return folder, [file for file in files if not (folder / file).is_file()]


def _weights(folder: Path, place: Path, stem: str) -> list[str]:
    """Of a part in a place within the folder, by its index."""
    index = place / f"{stem}.safetensors.index.json"
    names = layout.indexed(index) if index.is_file() else [f"{stem}.safetensors"]
    return [(place / name).relative_to(folder).as_posix() for name in names]


def _snapshot(name: str, files: Sequence[str]) -> Path:
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"--model {name} is no folder, and for an id of the hub huggingface_hub is not installed; "
            "pip install 'worldline[hub]'"
        ) from None
    repo, _, revision = name.partition("@")
    try:
        return Path(hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(files)))
    except errors.LocalEntryNotFoundError:
        why = "is neither a folder nor in the hub's cache, and the hub is out of reach; check the name or go online"
    except errors.GatedRepoError:
        why = "asks for consent: accept its terms on the hub, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "is neither a folder nor a model of the hub; check the name, or `hf auth login` if it is private"
    except errors.RevisionNotFoundError:
        why = f"has no revision {revision!r}"
    except (OSError, ValueError) as error:
        why = f"cannot be fetched ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    raise UserError(f"--model {name} {why}")
