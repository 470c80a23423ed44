"""What a model folder must look like on disk, checked from names and headers alone, without importing torch.

The diffusers layout, ours among them:

model_index.json         class names of the components, defaults for generation
transformer/             config.json + diffusion_pytorch_model*.safetensors
vae/                     config.json + diffusion_pytorch_model*.safetensors
text_encoder/            config.json + model*.safetensors (none for an encoder that lives in a package)
tokenizer/               tokenizer.json, of public models
scheduler/               scheduler_config.json
transformer_2/           as transformer/, image_encoder/ as text_encoder/: only where the index names them

The layout of Wan's authors (github.com/Wan-Video/Wan2.1 and Wan2.2); all but the transformer is published as .pth, a
pickle: see `headers.conversion`.

config.json              of the transformer
diffusion_pytorch_model*.safetensors
Wan2.1_VAE.safetensors                        Wan2.2_VAE of TI2V 5B
models_t5_umt5-xxl-enc-bf16.safetensors
models_clip_open-clip-xlm-roberta-large-vit-huge-14*.safetensors   of Wan 2.1 from pictures
google/umt5-xxl/         tokenizer.json
high_noise_model/, low_noise_model/           each with a config.json and weights, of Wan 2.2 A14B instead of one in
                                              the folder itself

Open-Sora 2.0 is published as a flat folder without an index, too; see `families.OPENSORA_PARTS`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from worldline.checkpoints.families import (
    BOTH_ENDS,
    CLASSES,
    CONFIG_NAMES,
    CONVERTERS_SHIFT,
    FAMILIES,
    NATIVE_CLASS,
    NATIVE_EXPERTS,
    NATIVE_TOKENIZER,
    NATIVES,
    OPENSORA,
    OPENSORA_DEFAULTS,
    OPENSORA_PARTS,
    OPENSORA_TOKENIZERS,
    OPTIONAL,
    STEMS,
    VARIANTS,
    Native,
)
from worldline.checkpoints.headers import LORA, PICKLES, conversion, describe, kind_of, read_header
from worldline.errors import UserError
from worldline.shapes import Grid

INDEX = "model_index.json"
PIPELINE_CLASS = "WorldlinePipeline"
SHIPPED = Path(__file__).resolve().parent.parent / "models" / "worldline-tiny"
EXAMPLE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def resolve(path: str | Path | None) -> Path:
    """The folder that a user means: the shipped model when `path` is None, a copy of the hub's for an id (`hub`)."""
    from worldline.checkpoints import hub

    if path is None:
        return SHIPPED
    if "\0" in str(path):
        raise UserError("--model: the path holds a NUL byte; give the path of a model folder")
    folder = Path(os.path.expanduser(path))
    return hub.fetch(path) if isinstance(path, str) and hub.is_id(path) and not os.path.exists(folder) else folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model folder; raises UserError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--model {path} is missing; copy the whole model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise UserError(f"--model {path} cannot be read ({reason}); copy the model folder again") from None
    if not isinstance(value, dict):
        raise UserError(f"--model {path} holds no JSON object; copy the model folder again")
    return value


# ---- where the parts lie -----------------------------------------------------------------------


def is_opensora(folder: Path) -> bool:
    """Whether a folder has the layout of Open-Sora 2.0: no index, and one of the files that have its names."""
    stems = [OPENSORA_PARTS[part][0] for part in ("transformer", "vae")]
    return not (folder / INDEX).is_file() and any((folder / f"{stem}.safetensors").is_file() for stem in stems)


def is_native(folder: Path) -> bool:
    """Whether a folder has the layout of Wan's authors."""
    if (folder / INDEX).is_file() or is_opensora(folder):
        return False
    return (folder / "config.json").is_file() or _has_experts(folder)


def _has_experts(folder: Path) -> bool:
    return any((folder / name / "config.json").is_file() for name in NATIVE_EXPERTS.values())


def native(folder: Path) -> Native:
    """What a folder of Wan's authors holds; raises UserError for one of another model."""
    experts = _has_experts(folder)
    place = folder / NATIVE_EXPERTS["transformer"] if experts else folder
    values = read_json(place / "config.json")
    name, kind = values.get("_class_name"), values.get("model_type", "t2v")
    if name != NATIVE_CLASS:
        above = f"; did you mean {folder.parent}?" if (folder.parent / INDEX).is_file() else ""
        raise UserError(
            f"--model {place} holds no {INDEX}, and its config.json is of {name or 'no class'}, not {NATIVE_CLASS}: "
            f"a part of a model, or another{above}"
        )
    known = [kind for kind, two in NATIVES if two == experts]
    if kind not in known:
        raise UserError(
            f"--model {place} is Wan's model_type={kind!r}; of its authors' folders "
            f"{'with two experts ' if experts else ''}{', '.join(map(repr, known))} are read"
        )
    return NATIVES[kind, experts]


def native_place(folder: Path, part: str) -> Path:
    """Where in a folder of Wan's authors the files of a part lie."""
    return folder / NATIVE_EXPERTS[part] if part in NATIVE_EXPERTS and _has_experts(folder) else folder


def index_of(folder: Path) -> dict[str, Any]:
    """What the index of a folder says, or would say in a layout that has none."""
    if is_native(folder):
        return dict(native(folder).index)
    return {} if is_opensora(folder) else read_json(folder / INDEX)


def components(folder: Path) -> dict[str, Path | None]:
    """The components that a folder has to hold, and their configs; None for one that does without."""
    if is_opensora(folder):
        configs = {part: folder / config for part, (_, config) in OPENSORA_PARTS.items()}
        return {part: config if config.is_file() else None for part, config in configs.items()}
    if is_native(folder):
        parts = [*native(folder).stems, "scheduler"]
        return {part: native_place(folder, part) / "config.json" if part in NATIVE_EXPERTS else None for part in parts}
    index = index_of(folder)
    named = [name for name in OPTIONAL if index.get(name) not in (None, [None, None])]
    return {part: folder / part / name for part, name in (CONFIG_NAMES | dict.fromkeys(named, "config.json")).items()}


def weighty(folder: Path) -> list[str]:
    """Those of them that have weights."""
    return [component for component in components(folder) if component != "scheduler"]


def config(folder: Path, component: str) -> dict[str, Any]:
    """A component's config, empty for one that does without."""
    path = components(folder).get(component, folder / component / "config.json")
    return {} if path is None else read_json(path)


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of a component, sharded or not, in name order."""
    if is_opensora(folder):
        stem = folder / OPENSORA_PARTS[component][0]
        return files_of(stem.parent, stem.name)
    if is_native(folder):
        return files_of(native_place(folder, component), native(folder).stems[component])
    return files_of(folder / component, STEMS[component])


def files_of(place: Path, stem: str) -> list[Path]:
    """Those of one component: what its index names, else the one file, else all that begin with `stem`.

    Raises UserError for an index that names what is not there or not beside it.
    """
    index = place / f"{stem}.safetensors.index.json"
    if index.is_file():
        files = [place / name for name in indexed(index)]
        for file in files:
            if not file.is_file():
                raise UserError(f"--model {index} names {file.name}, which is missing; copy the whole model folder")
        return files
    whole = place / f"{stem}.safetensors"
    return [whole] if whole.is_file() else sorted(place.glob(f"{stem}*.safetensors"))


def indexed(index: Path) -> list[str]:
    """The names of the files that an index of shards lists, in order; raises UserError for other than plain names."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"--model {index} has no weight_map from tensors to files; copy the model folder again")
    names = sorted(set(shards.values()))
    for name in names:
        if name != Path(name).name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise UserError(f"--model {index} names {name[:80]!r}, no safetensors file beside it; take another copy")
    return names


# ---- checks ------------------------------------------------------------------------------------


def check(path: str | Path | None) -> Path:
    """The folder, once its index, configs and weight headers have proved readable; raises UserError, loads nothing."""
    folder = resolve(path)
    if os.path.isfile(folder):
        found = describe(folder)
        raise UserError(f"--model {folder} is one file, {found['what']}; it needs {found['needs']}")
    if not os.path.isdir(folder):
        raise UserError(
            f"--model {folder} does not exist; give a folder that holds {INDEX}, or a hub id such as {EXAMPLE}"
        )
    if is_opensora(folder):
        _check_opensora(folder)
    elif is_native(folder):
        _check_native(folder)
    else:
        check_index(folder)
        for component in weighty(folder):
            if component != "text_encoder" and not weight_files(folder, component):
                raise UserError(f"--model {folder / component} holds no *.safetensors{_pickled(folder / component)}")
    for component in weighty(folder):
        for file in weight_files(folder, component):
            if kind_of(entry.name for entry in read_header(file)) is LORA:
                raise UserError(f"--model {file} is {LORA.what}; it needs {LORA.needs}")
    return folder


def family(folder: Path) -> str:
    """The class name of a checked folder's pipeline, or `OPENSORA`."""
    if is_opensora(folder):
        return OPENSORA
    return native(folder).pipeline if is_native(folder) else str(read_json(folder / INDEX)["_class_name"])


def check_index(folder: Path) -> None:
    """That the index and the configs of a folder in the diffusers layout are readable and of classes known here."""
    if not (folder / INDEX).is_file():
        raise UserError(f"--model {folder} holds no {INDEX}, so it is not a model folder; {_suggestion(folder)}")
    index = read_json(folder / INDEX)
    found = index.get("_class_name")
    if found != PIPELINE_CLASS and found not in list(FAMILIES):
        known = ", ".join([PIPELINE_CLASS, *FAMILIES])
        raise UserError(f"--model {folder} holds a {found}, which is not readable here; what is: {known}")
    parts = components(folder)
    for component, known in CLASSES.get(str(found), {}).items():
        if component not in parts:
            continue
        named = index.get(component, [None, known])
        if not isinstance(named, list) or len(named) != 2 or named[1] != known:
            raise UserError(f"--model {folder / INDEX} has {named} for {component}, which is readable only as {known}")
    for component in parts:
        config(folder, component)


def _pickled(place: Path) -> str:
    """What to do about a folder without safetensors."""
    pickles = sorted(file for file in place.glob("*") if file.suffix in PICKLES)
    return f", and pickles are never loaded; {conversion(*pickles)}" if pickles else "; copy the whole model folder"


def _check_native(folder: Path) -> None:
    """Raises one UserError that names every missing file of a folder of Wan's authors, and the pickle in its place."""
    if folder.name in NATIVE_EXPERTS.values() and _has_experts(folder.parent):
        raise UserError(f"--model {folder} is one of two experts, a part of a model; did you mean {folder.parent}?")
    missing: list[str] = []
    pickles: list[Path] = []
    for part, stem in native(folder).stems.items():
        place = native_place(folder, part)
        if not weight_files(folder, part):
            missing.append(str((place / f"{stem}.safetensors").relative_to(folder)))
            pickles += sorted(file for file in place.glob(f"{stem}*") if file.suffix in PICKLES)
    if not (folder / NATIVE_TOKENIZER / "tokenizer.json").is_file():
        missing.append(f"{NATIVE_TOKENIZER}/tokenizer.json")
    if missing:
        told = f"; its .pth are pickles, which are never loaded: {conversion(*pickles)}" if pickles else ""
        raise UserError(f"--model {folder} lacks {', '.join(missing)}{told}")


def _check_opensora(folder: Path) -> None:
    """Raises one UserError that names every missing file of Open-Sora 2.0's folder."""
    missing = [f"{stem}.safetensors" for part, (stem, _) in OPENSORA_PARTS.items() if not weight_files(folder, part)]
    missing += [OPENSORA_PARTS[part][1] for part in ("text_encoder", "text_encoder_2")
                if not (folder / OPENSORA_PARTS[part][1]).is_file()]  # fmt: skip
    for place, names in OPENSORA_TOKENIZERS.items():
        if not any((folder / place / name).is_file() for name in names):
            missing.append(f"{place}/{' or '.join(names)}")
    if missing:
        raise UserError(
            f"--model {folder} is {OPENSORA}'s and lacks {', '.join(missing)}; copy it whole, and its encoders as "
            "safetensors, since pickles are never loaded"
        )
    for part in OPENSORA_PARTS:
        config(folder, part)


def _suggestion(folder: Path) -> str:
    below = sorted(p.parent for p in folder.glob(f"*/{INDEX}"))
    if below:
        return f"did you mean {below[0]}?"
    files = sorted(folder.glob("*.safetensors"))
    if files:
        found = describe(files[0])
        return f"{files[0].name} in it is {found['what']} and needs {found['needs']}"
    return "omit it for the shipped model"


# ---- what is told of a folder ------------------------------------------------------------------


def defaults(folder: Path) -> dict[str, Any]:
    """How a checked model generates where nothing else is asked."""
    index, name = index_of(folder), family(folder)
    if name == OPENSORA:
        return dict(OPENSORA_DEFAULTS)
    values = dict(FAMILIES.get(name, {}))
    for variant in ("boundary_ratio", "expand_timesteps"):
        values |= VARIANTS.get((name, variant), {}) if index.get(variant) else {}
    told = config(folder, "scheduler").get("flow_shift") if "shift" in values else None
    if told not in (None, CONVERTERS_SHIFT):
        del values["shift"]  # somebody means it
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
    vae, dit = (config(folder, part) for part in ("vae", "transformer"))
    if is_native(folder):
        vae = {"scale_factor_spatial": native(folder).spatial}
    if family(folder) == OPENSORA:
        side = dit.get("patch_size", 2)
        dit = {"patch_size": [1, side, side]}
    ours = family(folder) == PIPELINE_CLASS
    names = ("temporal", "spatial") if ours else ("scale_factor_temporal", "scale_factor_spatial")
    temporal, spatial = (vae.get(name, usual) for name, usual in zip(names, (Grid.temporal, Grid.spatial), strict=True))
    patch = dit.get("patch" if ours else "patch_size", Grid.patch)
    sizes = [temporal, spatial, *(patch if isinstance(patch, list | tuple) and len(patch) == 3 else [patch])]
    if len(sizes) != 5 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"--model {folder}: no cells of {sizes} frames and pixels can be; copy the model folder again")
    beside = not ours and dit.get("in_channels", 16) != dit.get("out_channels", 16)
    pictures = (2 if dit.get("pos_embed_seq_len") else 1) if beside else 0
    if is_native(folder):
        pictures = native(folder).pictures
    return Traits(Grid(temporal, spatial, tuple(patch)), bool(dit.get("actions")), pictures)


def name_of(folder: Path) -> str:
    """What a model is called: as its folder, or as on the hub, in whose cache it lies under the name of a commit."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.name


def model_hash(path: str | Path | None = None) -> str:
    """sha256 (hex) over every config and weight file of the folder: the identity that provenance records."""
    folder = resolve(path)
    digest = hashlib.sha256()
    configs = components(folder).values()
    names = [file for file in (folder / INDEX, *configs) if file is not None and file.is_file()]
    names += [file for part in weighty(folder) for file in weight_files(folder, part)]
    for file in names:
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def info(path: str | Path | None) -> dict[str, Any]:
    """What a folder holds: parameters and bytes per component, configs, defaults, hash. JSON-serialisable.

    Of one safetensors file: what it is, and what it needs to become a model (`headers.describe`).
    """
    folder = resolve(path)
    if os.path.isfile(folder):
        return describe(folder)
    folder = check(folder)
    parts: dict[str, Any] = {}
    for component in components(folder):
        files = weight_files(folder, component) if component in weighty(folder) else []
        entries = [entry for file in files for entry in read_header(file)]
        parts[component] = {
            "parameters": sum(entry.count for entry in entries),
            "bytes": sum(file.stat().st_size for file in files),
            "dtypes": sorted({entry.dtype for entry in entries}),
            "files": [file.name for file in files],
            "config": config(folder, component),
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
