"""The transformer of a model, or the two that share the times of sampling and take turns in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints.folder import Parts
from worldline.checkpoints.keymap import Piece
from worldline.dit.config import TransformerConfig
from worldline.dit.mmdit import MMDiT
from worldline.dit.model import DiT
from worldline.generate.device import Timings, check_compiler
from worldline.generate.drawing import Drawing
from worldline.nn.hollow import is_hollow
from worldline.nn.memory import return_freed_memory


class Experts:
    """`dit` for the times from `boundary` on, and for those below it `low`, where there is one.

    Where they can be read again they take turns: one gives up its weights when the other's are needed, unless there is
    room for both.
    """

    def __init__(self, parts: Parts, device: torch.device, dtype: torch.dtype, timings: Timings) -> None:
        """Moves the transformers of `parts`, but for a hollow one, to a device and a type."""
        self.dit, self.low, self.boundary = parts.dit, parts.low, parts.boundary
        self.device, self.dtype, self.timings = device, dtype, timings
        for dit in (self.dit, self.low):
            if dit is not None and not is_hollow(dit):
                dit.to(device, dtype)
        self._pieces: dict[Any, Piece[Any]] = dict(zip((self.dit, self.low), parts.experts or (), strict=False))
        self._both = False  # whether there is room for two

    @property
    def config(self) -> TransformerConfig:
        """What is the same of both."""
        return self.dit.config

    @property
    def take_turns(self) -> bool:
        """Whether one may give up its weights for the other's."""
        return bool(self._pieces)

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compiles the blocks by `torch.compile` when they first run; those of a kind share programs.

        It takes up to a minute for every new shape, and gives the same numbers but for rounding. Raises UserError where
        the device needs a compiler of C++ that is not there.
        """
        if backend == "inductor":
            check_compiler(self.device)
        for dit in (self.dit, self.low):
            for block in [] if dit is None else dit.stack():
                block.compile(backend=backend)

    def settle(self, spare: float) -> None:
        """Of two that take turns, both stay if `spare` bytes hold the weights that are missing; else only the first."""
        assert self.low is not None
        width = torch.empty((), dtype=self.dtype).element_size()
        asleep = [dit for dit in (self.dit, self.low) if is_hollow(dit)]
        needed = sum(width * value.numel() for dit in asleep for value in dit.parameters())
        self._both = spare >= needed
        if not self._both and not asleep:
            self._sleep(self.low)

    def at(self, t: Tensor, drawing: Drawing) -> tuple[DiT | MMDiT, float]:
        """The transformer of a time, with its weights, and the scale of its guidance."""
        if self.low is None:
            return self.dit, drawing.guidance_scale
        # Compared as they are stored: 900 of 1000 in float32 lies below the number 0.9.
        if bool(t >= t.new_tensor(self.boundary)):
            return self._awake(self.dit, self.low), drawing.guidance_scale
        scale = drawing.guidance_scale if drawing.guidance_scale_2 is None else drawing.guidance_scale_2
        return self._awake(self.low, self.dit), scale

    def _awake(self, dit: DiT | MMDiT, other: DiT | MMDiT) -> DiT | MMDiT:
        """An expert with its weights; where it has none they are read, once the other's are given up unless there is
        room for both."""
        if is_hollow(dit):
            with self.timings.of("load"), torch.inference_mode(False):  # weights are as any that are read
                if not self._both:
                    self._sleep(other)
                self._pieces[dit].fill(dit, self.dtype, self.device)
        return dit

    @staticmethod
    def _sleep(dit: DiT | MMDiT) -> None:
        """Gives up an expert's weights."""
        dit.to("meta")
        return_freed_memory()
