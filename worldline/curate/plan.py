"""The plan of a curation: which stages, in which order, with which thresholds. Recipes return one."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldline.curate.aesthetic import Aesthetic
from worldline.curate.bars import Bars
from worldline.curate.duplicates import Duplicates
from worldline.curate.filters import Exposure, Motion, Sharpness
from worldline.curate.probe import FAULTS
from worldline.curate.shots import Shots, Trim
from worldline.curate.stage import Stage
from worldline.curate.text import Text

OPTIONAL: tuple[Stage, ...] = (Text(), Aesthetic())  # need more than the extra `data`, so they are asked for by name


@dataclass(frozen=True)
class CuratePlan:
    """Everything that decides about clips; its `repr` names the work, so a changed plan is done anew.

    `refuse` are the names in `probe.FAULTS` and `probe.REMARKS` that quarantine a file. `stages` judge clips in this
    order; the first that finds a reason names it, all note their scores.
    """

    refuse: tuple[str, ...] = FAULTS
    shots: Shots | None = field(default_factory=Shots)
    trim: Trim = field(default_factory=Trim)
    stages: tuple[Stage, ...] = (Exposure(), Bars(), Sharpness(), Motion())
    duplicates: Duplicates | None = field(default_factory=Duplicates)
