"""How the C library keeps memory between tensors, where that decides speed."""

from __future__ import annotations

import ctypes
import sys

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Let freed tensors stay with the process instead of returning to the kernel; call once, before any work.

    glibc maps every tensor above a threshold afresh, and the kernel clears its pages at the first touch: 35 000
    page faults and 10 % of a training step of the tiny transformer. Costs no memory beyond the peak.

    Returns:
        Whether the C library took it; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 32 * 1024 * 1024  # glibc refuses a higher threshold
    return bool(mallopt(_MMAP_THRESHOLD, largest)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> None:
    """Give the kernel what freed tensors have left, also between living ones: for weights that are gone for long."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
