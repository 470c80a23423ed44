"""The clip that most tests of this folder write and read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.media.clips import ball_clip


@pytest.fixture
def clip() -> np.ndarray:
    return ball_clip()
