"""A run that is killed at 20 random moments and resumed ends in the bits of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_twenty_kills_change_no_bit(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(DRIVER), str(tmp_path), "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] == 20
    assert len(set(report["starts"])) >= 5  # the kills fell all over the run, not before its first checkpoint
    assert report["different"] == []
