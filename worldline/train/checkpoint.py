"""Checkpoints that survive a kill at any moment: hashed safetensors in a folder that appears by one rename.

`step-00001200/` holds a safetensors file of every process, whose header says which piece of which tensor it has, and
`state.json` (step, seed, plan, SHA-256 of each file). They are written by `torch.distributed.checkpoint`, which gives
any number of processes their pieces again. Its own index is a pickle; its safetensors storage needs none, and nothing
is ever unpickled from disk. The folder is written under a temporary name, synced, then renamed; a damaged one is set
aside and the one before is read. Several machines need one file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from worldline.errors import UserError
from worldline.media.write import sync
from worldline.parallel.mesh import Crew

STEP = re.compile(r"step-(\d{8})")
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint folder in memory: tensors by name, and the JSON state."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Damaged(Exception):
    """A checkpoint folder that does not hold what its state.json says."""


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int, crew: Crew
) -> Path:
    """Writes `folder/step-{step:08d}` atomically and removes all but the newest `keep`; returns its path.

    All processes call it, each with what it holds. Raises OSError in all of them when one cannot write; then there is
    nothing of the step, and what was there before is.
    """
    final, part = folder / f"step-{step:08d}", folder / f".saving-{step:08d}"
    failure: OSError | None = None
    hashes: dict[str, str] = {}
    try:
        if crew.first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
    except OSError as error:
        failure = error
    if not _failed(crew, failure):
        try:
            writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
            dcp.save(dict(tensors), storage_writer=writer, process_group=crew.saving, no_dist=crew.size == 1)
            own = part.glob(f"shard-{crew.rank + 1:05d}-*.safetensors")
            hashes = {path.name: sha256(path) for path in own}
        except (OSError, CheckpointException) as reason:
            failure = reason if isinstance(reason, OSError) else _cause(reason)
        hashes = {name: value for each in crew.gather(hashes, crew.saving) for name, value in each.items()}
        if crew.first and failure is None:
            try:
                _publish(part, final, {**state, "step": step, "processes": crew.size, "sha256": hashes})
            except OSError as error:
                failure = error
    said = _failed(crew, failure)
    if said:
        if crew.first:
            shutil.rmtree(part, ignore_errors=True)
        raise OSError(*said)
    if crew.first:
        _clean(folder)
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return final


def _publish(part: Path, final: Path, state: Mapping[str, Any]) -> None:
    path = part / STATE
    path.write_text(json.dumps(state, indent=1))
    sync(path)
    sync(part)
    if final.exists():  # an earlier run left the same step: it goes only after the new one is complete
        aside = part.with_name(part.name.replace("saving", "replaced"))
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    os.rename(part, final)
    sync(final.parent)


def _failed(crew: Crew, failure: OSError | None) -> tuple[int, str] | None:
    """(errno, words) of the first process that failed; None when none did. The same in all of them."""
    own = None if failure is None else (failure.errno or 0, failure.strerror or str(failure))
    return next((reason for reason in crew.gather(own, crew.saving) if reason is not None), None)


def _cause(failure: CheckpointException) -> OSError:
    """The error of the disk behind a failure of several processes."""
    causes = [reason[0] for reason in failure.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            return cause
    return OSError(0, str(causes[0]) if causes else str(failure))


class Saver:
    """Saves beside the training: `begin` copies to the CPU, a thread writes, and the next step goes on meanwhile.

    Args:
        tensors: what this process holds, updated in place by the training, by name.
        spread: gives a copy of such a tensor as the whole that it is a part of, see `parallel.shard.spread_like`.
        say: is told when a checkpoint could not be written; training goes on.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        tensors: Mapping[str, Tensor],
        spread: Callable[[str, Tensor], Tensor],
        crew: Crew,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.keep, self.tensors, self.crew, self.say = folder, keep, tensors, crew, say
        pinned = crew.device.type == "cuda"
        self.copies = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=pinned) for n, t in tensors.items()}
        self.wholes = {name: spread(name, copy) for name, copy in self.copies.items()}
        self.saved = -1
        self.stalled = 0.0  # seconds that training waited
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._step = -1
        _alone()

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Copies the tensors and returns; waits for the save before it. A step that is saved is not saved again."""
        began = time.perf_counter()
        self.wait()
        if self.saved == step:
            return
        for name, copy in self.copies.items():
            copy.copy_(self.tensors[name], non_blocking=True)
        if self.crew.device.type == "cuda":
            torch.cuda.synchronize(self.crew.device)
        self._step = step
        self._thread = threading.Thread(target=self._write, args=(step, dict(state)), daemon=True)
        self._thread.start()
        self.stalled += time.perf_counter() - began

    def _write(self, step: int, state: dict[str, Any]) -> None:
        try:
            save(self.folder, step, self.wholes, state, self.keep, self.crew)
        except Exception as error:
            self._failure = error

    def writing(self) -> bool:
        """Whether a save is going on."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> bool:
        """Waits until nothing is being written; False when the disk did not take it, which is said."""
        if self._thread is None:
            return True
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is None:
            self.saved = self._step
            return True
        if not isinstance(failure, OSError):
            raise failure
        self.say(f"step {self._step}: no checkpoint ({failure.strerror or failure}); the one before is kept")
        return False

    @torch.no_grad()
    def fill(self, path: Path) -> None:
        """Copies a checkpoint, written by any number of processes, into the tensors.

        Raises UserError when it does not hold them.
        """
        reader = HuggingFaceStorageReader(str(path))
        held = _shapes(reader)
        for name, whole in self.wholes.items():
            if held.pop(name, None) != whole.shape:
                raise UserError(f"resume: {path.parent} holds another model ('{name}' does not fit the plan)")
        if held:
            raise UserError(f"resume: {path.parent} holds another model ('{next(iter(held))}' does not fit the plan)")
        dcp.load(dict(self.wholes), storage_reader=reader, process_group=self.crew.saving, no_dist=self.crew.size == 1)
        for name, tensor in self.tensors.items():
            tensor.copy_(self.copies[name])


def _alone() -> None:
    """Silences the advice that torch gives to a process without others at every save."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")


def _shapes(reader: HuggingFaceStorageReader) -> dict[str, torch.Size]:
    found = reader.read_metadata().state_dict_metadata
    return {name: held.size for name, held in found.items() if isinstance(held, TensorStorageMetadata)}


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for entry in folder.iterdir() if (match := STEP.fullmatch(entry.name)))


def load(path: Path, start: str = "") -> Checkpoint:
    """A checkpoint: all tensors whose names begin with `start`. Raises Damaged with the reason when a file is missing,
    short or altered."""
    state = checked(path)
    _alone()
    reader = HuggingFaceStorageReader(str(path))
    found = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name, held in found.items():
        if not name.startswith(start):
            continue
        assert isinstance(held, TensorStorageMetadata)
        tensors[name] = torch.empty(held.size, dtype=held.properties.dtype)
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return Checkpoint(int(state["step"]), tensors, state)


def checked(path: Path, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """The state of a checkpoint folder. Raises Damaged unless every file, or every one of a part, has its SHA-256."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        for name in sorted(state["sha256"])[part::parts]:
            if sha256(path / name) != state["sha256"][name]:
                raise Damaged(f"{name} does not match its SHA-256")
        int(state["step"])
        return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def newest(folder: Path, crew: Crew, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest sound checkpoint and its state, or None. Each damaged one is renamed to `damaged-...` and named in one
    line. All processes call it; each checks some of the files."""
    if crew.first:
        _clean(folder)
    for step in crew.gather(list(reversed(steps(folder))), crew.saving)[0]:
        path = folder / f"step-{step:08d}"
        state, reason = {}, ""
        try:
            state = checked(path, crew.rank, crew.size)
        except Damaged as damage:
            reason = str(damage)
        reason = next((each for each in crew.gather(reason, crew.saving) if each), "")
        if not reason:
            return path, state
        aside = folder / f"damaged-{step:08d}-{os.getpid()}"
        if crew.first:
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
