"""Checkpoints that survive a kill at any moment: hashed safetensors in a folder that appears by one rename.

`step-00001200/` holds model, optim and ema `.safetensors` and `state.json` (step, seed, plan, SHA-256 of each file).
The folder is written under a temporary name, synced, then renamed; a damaged one is set aside and the one before is
read. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.media.write import sync

STEP = re.compile(r"step-(\d{8})")
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds: `tensors[file stem][name]` and the JSON state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Damaged(Exception):
    """A checkpoint folder that does not hold what its state.json says."""


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes `folder/step-{step:08d}` atomically and removes all but the newest `keep`; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".saving-{step:08d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        hashes = {}
        for stem, members in tensors.items():
            path = temporary / f"{stem}.safetensors"
            # Copies are contiguous and own their storage: views of one flat vector would be refused as shared.
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in members.items()}, path)
            sync(path)
            hashes[path.name] = sha256(path)
        path = temporary / STATE
        path.write_text(json.dumps({**state, "step": step, "sha256": hashes}, indent=1))
        sync(path)
        if final.exists():  # an earlier run left the same step: it goes only after the new one is complete
            aside = folder / f".replaced-{step:08d}-{os.getpid()}"
            os.rename(final, aside)
        os.rename(temporary, final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _clean(folder)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := STEP.fullmatch(entry.name)))


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint folder. Raises Damaged with the reason when a file is missing, short or altered."""
    try:
        state = json.loads((path / STATE).read_text())
        hashes: dict[str, str] = state["sha256"]
        for name, expected in hashes.items():
            if sha256(path / name) != expected:
                raise Damaged(f"{name} does not match its SHA-256")
        tensors = {Path(name).stem: load_file(path / name) for name in hashes}
        return Checkpoint(int(state["step"]), tensors, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def load_newest(folder: Path, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest sound checkpoint, or None. Each damaged one is renamed to `damaged-...` and named in one line."""
    _clean(folder)
    for step in reversed(steps(folder)):
        path = folder / f"step-{step:08d}"
        try:
            return load(path)
        except Damaged as reason:
            aside = folder / f"damaged-{step:08d}-{os.getpid()}"
            os.rename(path, aside)
            say(f"checkpoint {path.name} is damaged ({reason}); set aside as {aside.name}, trying the one before")
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clean(folder: Path) -> None:
    """Removes what a killed run left half-written."""
    for pattern in (".saving-*", ".replaced-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
