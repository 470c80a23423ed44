"""The tiny folders of Wan's family that several tests of checkpoints read and none changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a kind, made once."""
    from tests.checkpoints.wan_folders import KINDS, make

    place = tmp_path_factory.mktemp("family")

    def folder(kind: str) -> Path:
        path = place / kind.replace(", ", "-").replace(" ", "-")
        return path if path.exists() else make(path, **KINDS[kind])

    return folder
