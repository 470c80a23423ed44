"""Models of the Hugging Face hub, by id: fetched into its cache once, and only the files that are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from worldline.checkpoints import layout
from worldline.errors import UserError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ID = re.compile(rf"{NAME}/{NAME}(@[A-Za-z0-9][A-Za-z0-9._/-]*)?")
CONFIGS = (layout.INDEX, "*/*.json", "tokenizer*/*.model", "tokenizer*/*.txt")


def is_id(name: str) -> bool:
    """Whether a name has the form org/name or org/name@revision."""
    return ID.fullmatch(name) is not None


def fetch(name: str) -> Path:
    """The folder of a model in the diffusers layout in the hub's cache, which `huggingface_hub` fills and continues.

    Configs come first, so that a model that is not readable here costs no download of weights. Raises UserError for
    what is neither in the cache nor to be had, and for other layouts.
    """
    folder = _snapshot(name, CONFIGS)
    if not (folder / layout.INDEX).is_file():
        raise UserError(
            f"--model {name} holds no {layout.INDEX}: of the hub's models those in the diffusers layout are read, "
            f"such as {layout.EXAMPLE}; fetch others yourself, and convert the pickles of those of Wan's authors"
        )
    layout.check_index(folder)
    files = [file for part in layout.weighty(folder) if (folder / part).is_dir() for file in _weights(folder, part)]
    folder = _snapshot(name, files)
    missing = [file for file in files if not (folder / file).is_file() and not file.startswith("text_encoder/model.")]
    if missing:
        raise UserError(f"--model {name}: {missing[0]} is not to be had, and not in the cache; try again when online")
    return folder


def _weights(folder: Path, part: str) -> list[str]:
    stem = layout.STEMS[part]
    index = folder / part / f"{stem}.safetensors.index.json"
    names = layout.indexed(index) if index.is_file() else [f"{stem}.safetensors"]
    return [f"{part}/{name}" for name in names]


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
