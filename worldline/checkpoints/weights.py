"""Tensors of a component's safetensors files, read one by one when they are asked for, and written shard by shard."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldline.checkpoints.families import STEMS
from worldline.checkpoints.headers import read_header
from worldline.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
MB = 2**20


class Weights(Mapping[str, Tensor]):
    """What files hold, by name, or by what `rename` makes of it. Only headers have been read.

    `shapes` are the tensors on the meta device. What has no type of `FLOATS` is in `foreign`, name to type: quantised
    weights are no weights until they are scaled. Raises UserError for a damaged file and a name that two files hold.
    """

    def __init__(self, files: Iterable[Path], rename: Callable[[str], str] = str) -> None:
        self.shapes: dict[str, Tensor] = {}
        self.foreign: dict[str, str] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            for entry in read_header(file):
                name = rename(entry.name)
                if name in self._places:
                    raise UserError(f"--model {file} holds {entry.name}, and so does {self._places[name][0].name}")
                if entry.dtype not in FLOATS:
                    self.foreign[name] = entry.dtype
                dtype = FLOATS.get(entry.dtype, torch.uint8)
                self.shapes[name] = torch.empty(entry.shape, dtype=dtype, device="meta")
                self._places[name] = file, entry.name

    def __getitem__(self, name: str) -> Tensor:
        file, theirs = self._places[name]
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, "pt")
            tensor: Tensor = self._open[file].get_tensor(theirs)
        except (OSError, SafetensorError) as error:
            raise UserError(f"--model {file} cannot be read ({error}); copy the model folder again") from None
        return tensor

    def close(self) -> None:
        """Let go of the files: what was read of them leaves memory, but for files of which a tensor is in use. They are
        opened again when something is asked for."""
        self._open.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def half_of(weights: Iterable[Tensor]) -> torch.dtype | None:
    """The half-precision type that most of them are stored in, if that is one: to widen them takes memory."""
    counts: Counter[torch.dtype] = Counter()
    for value in weights:
        counts[value.dtype] += value.numel()
    most = counts.most_common(1)[0][0] if counts else None
    return most if most in (torch.float16, torch.bfloat16) else None


def listed(keys: Iterable[str], most: int = 6) -> str:
    """The first of the names, and how many more there are."""
    names = sorted(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- writing -----------------------------------------------------------------------------------


def write_component(
    folder: Path,
    component: str,
    config: Mapping[str, Any],
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype | None,
    shard_bytes: int,
) -> None:
    """`folder/component/` with its config and its weights as `dtype` (None: as they are), in shards of at most
    `shard_bytes` (a larger single tensor stands alone); no more than one shard is copied at a time."""
    place, stem = folder / component, STEMS[component]
    about = place / "config.json"
    write_json(about, config)
    shards: list[list[str]] = []
    total = 0
    for shard in _shards(((name, _stored(value, dtype)) for name, value in weights), shard_bytes):
        save_file(shard, place / str(len(shards)), metadata={"format": "pt"})
        shards.append(list(shard))
        total += sum(value.nbytes for value in shard.values())
    many = len(shards) > 1
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" if many else f"{stem}.safetensors"
             for i in range(len(shards))]  # fmt: skip
    for i, file in enumerate(files):
        os.rename(place / str(i), place / file)
        os.chmod(place / file, about.stat().st_mode)  # safetensors keeps them to the owner
    if many:
        where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
        write_json(place / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point():
        if dtype == torch.float16 and value.numel() and float(value.abs().max()) > torch.finfo(dtype).max:
            dtype = torch.bfloat16  # same size, wider range
        value = value.to(dtype)
    return value.contiguous().clone()  # clone: safetensors refuses tensors that share memory


def _shards(weights: Iterable[tuple[str, Tensor]], most: int) -> Iterator[dict[str, Tensor]]:
    """The weights in order, cut into pieces of at most `most` bytes."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, value in weights:
        if shard and size + value.nbytes > most:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += value.nbytes
    if shard:
        yield shard
