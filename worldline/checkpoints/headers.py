"""What a safetensors file holds, told by its header alone: its tensors' names, types and shapes, and what they are of.

The header is checked against the file before anything believes it. Torch is not imported here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.errors import UserError

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 2 * 2**20  # of some 15,000 tensors; to parse so much takes less than 64 MB
MAX_AXES, MAX_SIDE = 8, 2**40  # of a shape; the product of its sides, those of 0 left out, must stay a number of bytes
MAX_COUNT = 2**56
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file in order of their names, from its header (8-byte length + JSON).

    Raises UserError for a file that is cut short or no safetensors, and for a header that does not describe it: every
    byte behind it must belong to exactly one tensor, whose type and shape take so many.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            if first == b"version ":
                raise ValueError("it is a pointer of git-lfs: `git lfs pull` fetches the file")
            length = int.from_bytes(first, "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"it has {size} bytes and would have a header of {length}")
            return _entries(file.read(length), size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"--model {path} is damaged or not safetensors ({reason}); copy the model folder again"
        ) from None


def _entries(header: bytes, data: int) -> list[TensorEntry]:
    """The tensors of a header before `data` bytes; raises ValueError where it lies."""
    values = json.loads(header.decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(values, dict):
        raise ValueError("its header is no JSON object")
    about = values.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its metadata is not text")
    entries, spans = [], []
    for name, value in sorted(values.items()):
        name.encode("utf-8")  # half a surrogate pair could not even be printed
        entry, span = _entry(name, value)
        entries.append(entry)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise ValueError(f"a tensor begins at byte {begin}, where {end} is the end of the one before it")
        end = stop
    if end != data:
        raise ValueError(f"its tensors take {end} bytes, and it has {data}")
    return entries


def _entry(name: str, value: Any) -> tuple[TensorEntry, tuple[int, int]]:
    """One tensor, and its first byte and the one behind its last."""
    told = f"{name[:60]!r}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{told} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{told} has the unknown dtype {str(dtype)[:20]!r}")
    if not _sizes(shape) or len(shape) > MAX_AXES or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{told} has an impossible shape or place")
    if math.prod(side for side in shape if side) > MAX_COUNT:
        raise ValueError(f"{told} has an impossible shape or place")
    entry = TensorEntry(name, dtype, tuple(shape))
    if entry.count * BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"{told} is {dtype} {entry.shape}, which does not fill its {offsets[1] - offsets[0]} bytes")
    return entry, (offsets[0], offsets[1])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < MAX_SIDE for value in values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("its header names something twice")
    return values


# ---- what tensors are of -----------------------------------------------------------------------

ADAPTER = re.compile(r"(^|[._])(lora[._](A|B|up|down)|lokr_\w+|hada_\w+)([._]|$)")


@dataclass(frozen=True)
class Kind:
    """What a file's tensors are of, the names that tell it, and what it needs to become a model."""

    what: str
    marks: tuple[str, ...]
    needs: str


NATIVE_WAN = (
    "config.json, diffusion_pytorch_model*.safetensors (of A14B in high_noise_model/ and low_noise_model/), "
    "Wan2.1_VAE.safetensors (Wan2.2_VAE of TI2V 5B), models_t5_umt5-xxl-enc-bf16.safetensors, of Wan 2.1 from pictures "
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors, and google/umt5-xxl in one folder"
)
DIFFUSERS = "to be {} of a folder in the diffusers layout, beside its config.json"
OPENSORA = (
    "Open_Sora_v2.safetensors, hunyuan_vae.safetensors, google/t5-v1_1-xxl and "
    "openai/clip-vit-large-patch14 in one folder"
)
KINDS = (
    Kind("Wan's transformer under its authors' names", ("time_projection.1.weight",), NATIVE_WAN),
    Kind(
        "Wan's transformer under diffusers' names",
        ("condition_embedder.time_proj.weight", "scale_shift_table"),
        DIFFUSERS.format("transformer/diffusion_pytorch_model.safetensors"),
    ),
    Kind("Open-Sora 2.0's transformer", ("cond_in.weight", "double_blocks.0.img_attn.q_proj.weight"), OPENSORA),
    Kind("Wan 2.1's autoencoder under its authors' names", ("encoder.downsamples.0.residual.2.weight",), NATIVE_WAN),
    Kind(
        "Wan 2.2's autoencoder under its authors' names",
        ("encoder.downsamples.0.downsamples.0.residual.2.weight",),
        NATIVE_WAN,
    ),
    Kind(
        "Wan's autoencoder under diffusers' names",
        ("encoder.conv_in.weight", "encoder.mid_block.attentions.0.to_qkv.weight"),
        DIFFUSERS.format("vae/diffusion_pytorch_model.safetensors"),
    ),
    Kind("HunyuanVideo's autoencoder", ("encoder.conv_in.conv.weight", "encoder.conv_norm_out.weight"), OPENSORA),
    Kind("CLIP under the names of Wan's authors", ("visual.transformer.0.attn.to_qkv.weight",), NATIVE_WAN),
    Kind("umT5 under the names of Wan's authors", ("blocks.0.pos_embedding.embedding.weight",), NATIVE_WAN),
    Kind(
        "a T5 text encoder",
        ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        DIFFUSERS.format("text_encoder/model.safetensors"),
    ),
    Kind("our own transformer", ("embed.weight", "blocks.0.table"), "to be in transformer/ of its model folder"),
    Kind("our own autoencoder", ("encoder.pca.weight",), "to be in vae/ of its model folder"),
)
LORA = Kind(
    "a LoRA, small changes to a model and not a model",
    (),
    "the model that it was trained on; none is applied here yet, so merge it there and give the whole",
)
UNKNOWN = Kind("of no model that is known here", (), "a model that is: Wan's, Open-Sora 2.0's or our own")


def kind_of(names: Iterable[str]) -> Kind:
    """What tensors of these names are of; prefixes that single files are published with do not matter."""
    names = {name.removeprefix("model.").removeprefix("diffusion_model.") for name in names}
    if any(ADAPTER.search(name) for name in names):
        return LORA
    return next((kind for kind in KINDS if names.issuperset(kind.marks)), UNKNOWN)


def describe(path: Path) -> dict[str, Any]:
    """What one weight file holds, JSON-serialisable; raises UserError for what is no sound safetensors file."""
    if path.suffix in PICKLES:
        raise UserError(f"--model {path} is a pickle, which is never loaded; {conversion(path)}")
    if path.suffix != ".safetensors":
        raise UserError(f"--model {path} is a file; give a model folder, or a .safetensors file to `worldline info`")
    entries = read_header(path)
    kind = kind_of(entry.name for entry in entries)
    return {
        "file": str(path),
        "what": kind.what,
        "needs": kind.needs,
        "tensors": len(entries),
        "parameters": sum(entry.count for entry in entries),
        "bytes": path.stat().st_size,
        "dtypes": sorted({entry.dtype for entry in entries}),
    }


def conversion(*pickles: Path) -> str:
    """How somebody makes safetensors files of pickles that they trust; torch reads them without running their code."""
    code = (
        "import sys, torch, safetensors.torch as s; [s.save_file({k: v.contiguous() for k, v in "
        "torch.load(p, map_location='cpu', weights_only=True).items()}, p.rsplit('.', 1)[0] + '.safetensors') "
        "for p in sys.argv[1:]]"
    )
    files = " ".join(f"'{path}'" for path in pickles)
    return f'convert it once if you trust it: python -c "{code}" {files}'
