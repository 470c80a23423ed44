"""Writes a long video while it is made: what is finished can be played, and after an interruption work goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldline.errors import UserError
from worldline.generate.drawing import Progress
from worldline.generate.pipeline import Pipeline
from worldline.generate.request import Request
from worldline.media.provenance import Parent
from worldline.media.write import write_bytes, write_growing


def unfinished(out: Path) -> Path:
    """Where the latents of an unfinished video lie."""
    return out.with_name(f".{out.name}.unfinished")


def write_long(
    pipeline: Pipeline,
    request: Request,
    out: Path,
    image: np.ndarray | None = None,
    how: str = "auto",
    progress: Progress | None = None,
    overwrite: bool = False,
    parents: Sequence[Parent] = (),
) -> None:
    """Makes one video and writes it to `out`, an mp4; the latents of every finished step are kept until it is whole.

    The same call after an interruption makes only the steps that are missing and ends in the same video. Raises
    UserError where the unfinished work beside `out` belongs to another request.
    """
    folder = unfinished(out)
    record = pipeline.record(request, image=image is not None, long=how)
    picture = hashlib.sha256(image.tobytes()).hexdigest() if image is not None else ""
    identity = json.dumps({**record, "picture": picture}, sort_keys=True, default=str)
    mark = folder / "request.json"
    if mark.exists() and mark.read_text() != identity:
        raise UserError(f"output: beside {out} lies another unfinished video; remove {folder} or use another name")
    folder.mkdir(exist_ok=True)
    write_bytes(mark, identity.encode())
    frames = pipeline.reel.stretch(request, image, how, progress, folder)
    write_growing(out, frames, request.fps, record, overwrite=overwrite, parents=parents)
    shutil.rmtree(folder)
