"""Ray writes the bytes that the local engine writes, whatever becomes of its workers; see `tests/curate/kill.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.curate.kill import curated, footage

pytest.importorskip("scenedetect")
pytest.importorskip("ray", reason="the extra `ray` (240 MB) is not installed")


def test_both_engines_write_the_same_bytes(tmp_path: Path) -> None:
    films = footage(tmp_path / "films", 3)
    expected, _ = curated(films, tmp_path / "local", "local")
    found, killed = curated(films, tmp_path / "ray", "ray", kills=2)
    assert killed
    assert found == expected
