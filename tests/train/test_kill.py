"""A run that is killed at random moments, with torn checkpoints and full disks, is resumed in the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_twenty_kills_change_no_bit():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.train.kill", "--kills", "20"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    report = json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr
    assert done.returncode == 0, report
    assert report["kills"] == 20
    assert report["in_saves"] >= 3
    assert report["torn"] >= 1
    assert report["disk_full"] >= 1
    assert len(set(report["starts"])) >= 5  # the kills fell all over the run, not before its first checkpoint
