"""Freed memory stays with the process: the same tensor again costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from worldline.nn.memory import keep_freed_memory
torch.set_num_threads(1)
assert keep_freed_memory()
def work():
    kept = [torch.ones(1_000_000) for _ in range(16)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has this setting")
def test_kept_memory_is_not_faulted_in_again() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    touched = 20 * 16 * 4_000_000 // 4096  # pages; how many fault without the setting differs between kernels
    assert int(run.stdout) < 0.02 * touched
