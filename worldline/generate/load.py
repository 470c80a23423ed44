"""From a model folder to a pipeline, and what is asked of the folder before its weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from worldline.checkpoints import layout
from worldline.checkpoints.folder import load_parts, model_hash
from worldline.checkpoints.outline import Outline, stored_half
from worldline.generate.device import check_compiler, chosen_device, fast_dtype
from worldline.generate.pipeline import Pipeline
from worldline.generate.plan import Setting, fitting_cut, setting
from worldline.generate.request import Request, known_defaults, request_of, window_of
from worldline.nn.memory import keep_freed_memory
from worldline.vae.codec import Cut


def load(
    path: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    max_memory: float | None = None,
    compiled: bool = False,
) -> Pipeline:
    """The pipeline of a model folder or hub id (None: the shipped model), `compiled` as by `Experts.compile`.

    Half-precision weights of public models are computed with as they are unless `dtype` is given. Raises UserError as
    `checkpoints.folder.load_parts`.
    """
    keep_freed_memory()
    folder = layout.check(path)
    chosen = chosen_device(device)
    if compiled:
        check_compiler(chosen)
    dtype = dtype or stored_half(folder) or fast_dtype(chosen)
    parts = load_parts(folder, dtype, chosen)
    pipeline = Pipeline(parts, model_hash(folder), chosen, dtype, folder, max_memory)
    if compiled:
        pipeline.experts.compile()
    return pipeline


def check_memory(folder: Path, request: Request, max_memory: float | None = None, **about: Any) -> Cut:
    """How the frames of a request to a model folder would be cut, of which nothing is loaded; `about` as in
    `generate.plan.Setting`. Raises UserError with the nearest size or length that fits where it does not fit."""
    model = Outline.of_folder(folder)
    return fitting_cut(model, request, setting_of(model, folder, None, max_memory, **about))


def setting_of(
    model: Outline, folder: Path, device: str | None = None, max_memory: float | None = None, **about: Any
) -> Setting:
    """Where and how `load` would run the model of a folder."""
    chosen = chosen_device(device)
    return setting(chosen, model.half or fast_dtype(chosen), layout.defaults(folder), max_memory, **about)


class Deferred:
    """A pipeline that is loaded when its weights are needed: what was asked for is checked before that."""

    def __init__(
        self, folder: Path, defaults: Mapping[str, Any], max_memory: float | None = None, compiled: bool = False
    ) -> None:
        self.folder, self.max_memory, self.compiled = folder, max_memory, compiled
        self.grid, self.driven, self.pictures = layout.traits(folder)
        self.defaults = Request("", **known_defaults(defaults), grid=self.grid)
        self.window = window_of(defaults, self.grid)

    def request(self, prompt: str, **given: Any) -> Request:
        """A valid request that fits into memory."""
        request = request_of(self.defaults, prompt, **given)
        check_memory(self.folder, request, self.max_memory, reads=True)
        return request

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":
            self.pipeline = load(self.folder, max_memory=self.max_memory, compiled=self.compiled)
            return self.pipeline
        return getattr(self.pipeline, name)
