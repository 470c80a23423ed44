"""What a model folder must look like on disk, checked from names and headers alone, without importing torch.

model_index.json         class names of the components, defaults for generation
transformer/             config.json + diffusion_pytorch_model*.safetensors
vae/                     config.json + diffusion_pytorch_model*.safetensors
text_encoder/            config.json + model*.safetensors (none for an encoder that lives in a package)
scheduler/               scheduler_config.json
transformer_2/           as transformer/, image_encoder/ as text_encoder/: only where the index names them
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from worldline.errors import UserError
from worldline.shapes import Grid

INDEX = "model_index.json"
PIPELINE_CLASS = "WorldlinePipeline"
# Public families in the same layout, and how their authors generate; see the modules of this folder. Wan's numbers and
# words: Wan-Video/Wan2.1 and Wan2.2, wan/configs and generate.py.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
WAN: dict[str, Any] = {
    "width": 832,
    "height": 480,
    "frames": 81,
    "fps": 16,
    "steps": 50,
    "guidance_scale": 5.0,
    "sampler": "unipc",
    "negative_prompt": WAN_NEGATIVE,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "WanPipeline": WAN,
    "WanImageToVideoPipeline": {**WAN, "steps": 40, "negative_prompt": f"镜头晃动，{WAN_NEGATIVE}"},
}
# What differs where the index holds a field: two experts, and a time for every token.
EXPERTS = {"width": 1280, "height": 720, "steps": 40, "negative_prompt": WAN_NEGATIVE}
VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    ("WanPipeline", "boundary_ratio"): {**EXPERTS, "guidance_scale": 4.0, "guidance_scale_2": 3.0},
    ("WanImageToVideoPipeline", "boundary_ratio"): {**EXPERTS, "guidance_scale": 3.5, "guidance_scale_2": 3.5},
    **{
        (family, "expand_timesteps"): {**WAN, "width": 1280, "height": 704, "frames": 121, "fps": 24}
        for family in FAMILIES
    },
}
BOTH_ENDS = {"width": 1280, "height": 720, "steps": 50}  # of Wan from a first to a last frame
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
OPTIONAL = {"transformer_2": "diffusion_pytorch_model", "image_encoder": "model"}  # and their stems
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
    return sorted((folder / component).glob(f"{(WEIGHT_STEMS | OPTIONAL)[component]}*.safetensors"))


def components(folder: Path) -> dict[str, str]:
    """The components that a folder has to hold, and the names of their configs."""
    index = read_json(folder / INDEX)
    named = [name for name in OPTIONAL if index.get(name) not in (None, [None, None])]
    return CONFIG_NAMES | dict.fromkeys(named, "config.json")


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
    for component, config in components(folder).items():
        read_json(folder / component / config)
        if component == "scheduler":
            continue
        files = weight_files(folder, component)
        if not files and component != "text_encoder":
            raise UserError(f"--model {folder / component} holds no *.safetensors; copy the whole model folder")
        for file in files:
            read_header(file)
    return folder


def defaults(folder: Path) -> dict[str, Any]:
    """How a checked model generates where nothing else is asked."""
    index = read_json(folder / INDEX)
    family = index["_class_name"]
    values = dict(FAMILIES.get(family, {}))
    for field in ("boundary_ratio", "expand_timesteps"):
        values |= VARIANTS.get((family, field), {}) if index.get(field) else {}
    if traits(folder).pictures == 2:
        values |= BOTH_ENDS
    return {**values, **index.get("defaults", {})}


class Traits(NamedTuple):
    """What a request has to know of a model before its weights are read."""

    grid: Grid
    driven: bool  # taught worlds that are driven by inputs
    pictures: int  # that it cannot do without: the first, or the first and the last


def traits(folder: Path) -> Traits:
    """From the configs of a checked folder."""
    vae, dit = (read_json(folder / part / CONFIG_NAMES[part]) for part in ("vae", "transformer"))
    ours = read_json(folder / INDEX)["_class_name"] == PIPELINE_CLASS
    names = ("temporal", "spatial") if ours else ("scale_factor_temporal", "scale_factor_spatial")
    temporal, spatial = (vae.get(name, usual) for name, usual in zip(names, (Grid.temporal, Grid.spatial), strict=True))
    patch = dit.get("patch" if ours else "patch_size", Grid.patch)
    sizes = [temporal, spatial, *(patch if isinstance(patch, list | tuple) and len(patch) == 3 else [patch])]
    if len(sizes) != 5 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"--model {folder}: no cells of {sizes} frames and pixels can be; copy the model folder again")
    beside = not ours and dit.get("in_channels", 16) != dit.get("out_channels", 16)
    pictures = (2 if dit.get("pos_embed_seq_len") else 1) if beside else 0
    return Traits(Grid(temporal, spatial, tuple(patch)), bool(dit.get("actions")), pictures)


def _suggestion(folder: Path) -> str:
    below = sorted(p.parent for p in folder.glob(f"*/{INDEX}"))
    return f"did you mean {below[0]}?" if below else "omit it for the shipped model"


def model_hash(path: str | Path | None = None) -> str:
    """sha256 (hex) over every config and weight file of the folder: the identity that provenance records."""
    folder = resolve(path)
    digest = hashlib.sha256()
    parts = components(folder)
    names = [folder / INDEX] + [folder / part / config for part, config in parts.items()]
    names += [file for part in parts if part != "scheduler" for file in weight_files(folder, part)]
    for file in names:
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def info(path: str | Path | None) -> dict[str, Any]:
    """What a folder holds: parameters and bytes per component, configs, defaults, hash. JSON-serialisable."""
    folder = check(path)
    parts: dict[str, Any] = {}
    for component, config in components(folder).items():
        files = weight_files(folder, component) if component != "scheduler" else []
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
