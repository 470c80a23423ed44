"""What a pipeline asks of the machine: a device, a type of numbers, a compiler, and the time that stages take."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worldline.errors import UserError


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, else the fastest here."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32 (fp16 on a CPU is slower than either)."""
    if device.type == "cuda":  # one that is planned for need not be here
        return torch.float32 if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else torch.bfloat16
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def check_compiler(device: torch.device) -> None:
    """Raises UserError where `torch.compile` lacks what it needs: on a CPU a compiler of C++."""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(command) is None:
        raise UserError(f"--compile needs {command}, a compiler of C++; install it, or leave --compile out")


class Timings(dict[str, float]):
    """Seconds that each stage took on a device; a stage within another counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Adds the seconds of a `with` block to a stage."""
        start, others = time.perf_counter(), self._others(stage)
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start - (self._others(stage) - others)
            self[stage] = self.get(stage, 0.0) + seconds

    def _others(self, stage: str) -> float:
        return sum(seconds for name, seconds in self.items() if name != stage)
