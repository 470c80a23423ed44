"""What a model folder must look like on disk, checked from names and headers alone, without importing torch.

model_index.json         class names of the components, defaults for generation
transformer/             config.json + diffusion_pytorch_model*.safetensors
vae/                     config.json + diffusion_pytorch_model*.safetensors
text_encoder/            config.json + model*.safetensors (none for an encoder that lives in a package)
scheduler/               scheduler_config.json
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.errors import UserError

INDEX = "model_index.json"
PIPELINE_CLASS = "WorldlinePipeline"
# Public families in the same layout, and how their authors generate; see the modules of this folder.
FAMILIES: dict[str, dict[str, Any]] = {
    "WanPipeline": {
        "width": 832,
        "height": 480,
        "frames": 81,
        "fps": 16,
        "steps": 50,
        "guidance_scale": 5.0,
        "sampler": "unipc",
    },
}
CONFIG_NAMES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHT_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
SHIPPED = Path(__file__).resolve().parent.parent / "models" / "worldline-tiny"
MAX_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit on its JSON header


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def resolve(path: str | Path | None) -> Path:
    """The folder that a user means: the shipped model when `path` is None."""
    return SHIPPED if path is None else Path(path).expanduser()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model folder; raises UserError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--model {path} is missing; copy the whole model folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise UserError(f"--model {path} cannot be read ({reason}); copy the model folder again") from None
    if not isinstance(value, dict):
        raise UserError(f"--model {path} holds no JSON object; copy the model folder again")
    return value


def read_header(path: Path) -> list[TensorEntry]:
    """Names, types and shapes in one safetensors file, from its header (8-byte length + JSON); the data stays on disk.

    Raises UserError when the file is cut short or is not safetensors.
    """
    damaged = UserError(f"--model {path} is damaged or not safetensors; copy the model folder again")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise damaged
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = [TensorEntry(k, v["dtype"], tuple(v["shape"])) for k, v in sorted(header.items())]
        end = max((v["data_offsets"][1] for v in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if end + 8 + length != size:
        raise damaged
    return entries


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of a component, sharded or not, in name order."""
    return sorted((folder / component).glob(f"{WEIGHT_STEMS[component]}*.safetensors"))


def check(path: str | Path | None) -> Path:
    """The folder, once its index, configs and weight headers have proved readable; raises UserError, loads nothing."""
    folder = resolve(path)
    if "\0" in str(folder):
        raise UserError("--model: the path holds a NUL byte; give the path of a model folder")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--model {folder} {what}; give a folder that holds {INDEX}")
    if not (folder / INDEX).is_file():
        raise UserError(f"--model {folder} holds no {INDEX}, so it is not a model folder; {_suggestion(folder)}")
    found = read_json(folder / INDEX).get("_class_name")
    if found != PIPELINE_CLASS and found not in FAMILIES:
        known = ", ".join([PIPELINE_CLASS, *FAMILIES])
        raise UserError(f"--model {folder} holds a {found}, which is not readable here; what is: {known}")
    for component, config in CONFIG_NAMES.items():
        read_json(folder / component / config)
    for component in ("transformer", "vae"):
        if not weight_files(folder, component):
            raise UserError(f"--model {folder / component} holds no *.safetensors; copy the whole model folder")
    for component in WEIGHT_STEMS:
        for file in weight_files(folder, component):
            read_header(file)
    return folder


def defaults(folder: Path) -> dict[str, Any]:
    """How a checked model generates where nothing else is asked."""
    index = read_json(folder / INDEX)
    return {**FAMILIES.get(index["_class_name"], {}), **index.get("defaults", {})}


def _suggestion(folder: Path) -> str:
    below = sorted(p.parent for p in folder.glob(f"*/{INDEX}"))
    return f"did you mean {below[0]}?" if below else "omit it for the shipped model"


def model_hash(path: str | Path | None = None) -> str:
    """sha256 (hex) over every config and weight file of the folder: the identity that provenance records."""
    folder = resolve(path)
    digest = hashlib.sha256()
    names = [folder / INDEX] + [folder / part / config for part, config in CONFIG_NAMES.items()]
    names += [file for part in WEIGHT_STEMS for file in weight_files(folder, part)]
    for file in names:
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def info(path: str | Path | None) -> dict[str, Any]:
    """What a folder holds: parameters and bytes per component, configs, defaults, hash. JSON-serialisable."""
    folder = check(path)
    parts: dict[str, Any] = {}
    for component, config in CONFIG_NAMES.items():
        files = weight_files(folder, component) if component in WEIGHT_STEMS else []
        entries = [entry for file in files for entry in read_header(file)]
        parts[component] = {
            "parameters": sum(entry.count for entry in entries),
            "bytes": sum(file.stat().st_size for file in files),
            "dtypes": sorted({entry.dtype for entry in entries}),
            "files": [file.name for file in files],
            "config": read_json(folder / component / config),
        }
    return {
        "folder": str(folder),
        "hash": model_hash(folder),
        "parameters": sum(part["parameters"] for part in parts.values()),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "defaults": defaults(folder),
        "components": parts,
    }


def free_name(path: Path) -> Path:
    """`path` with the smallest number appended that names nothing yet."""
    return next(name for i in itertools.count(2) if not (name := path.with_name(f"{path.name}-{i}")).exists())
