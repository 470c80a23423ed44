"""What a scoring stage is: it looks at single pictures during the one pass, and judges a clip from what it noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from worldline.records import Crop

LOOKS = 8  # a second
CLOSE = 4  # every so many looks one is close: the full luma is at hand


@dataclass(frozen=True)
class Look:
    """A picture of the pass, shared by all stages."""

    index: int  # of the frame
    seconds: float
    picture: np.ndarray  # uint8 (h, w, 3) BGR, its short side SHORT_SIDE or less
    grey: np.ndarray  # uint8 (h, w)
    before: np.ndarray | None  # `grey` of the look before
    elapsed: float  # seconds since that look
    size: tuple[int, int]  # width and height of the file's picture as shown
    luma: Callable[[], np.ndarray]  # uint8 (H, W), all samples; decoded already, but large
    sized: Callable[[int], np.ndarray]  # `picture` with another short side, made when it is asked for

    @property
    def new_second(self) -> bool:
        """Whether it is the first close look of a second, which is often enough for what costs much."""
        return math.floor(self.seconds) > math.floor(self.seconds - CLOSE / LOOKS)


@dataclass(frozen=True)
class Judgement:
    """What a stage says of a clip: it is dropped if there is a reason; a remark stands beside a clip that is kept."""

    scores: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    remark: str = ""
    crop: Crop | None = None


class Stage(Protocol):
    """A frozen dataclass whose fields are its thresholds."""

    name: ClassVar[str]
    close: ClassVar[bool]  # sees close looks only

    def check(self) -> None:
        """Raises UserError where something is missing that the stage needs; called before any work."""
        return None

    def see(self, look: Look) -> Any:
        """What to note of one look, small and picklable."""

    def judge(self, notes: Sequence[Any], size: tuple[int, int]) -> Judgement:
        """Scores and the decision, from the notes on all looks within a clip, in order; there is at least one."""
