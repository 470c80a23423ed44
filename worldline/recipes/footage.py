"""What to keep of footage: sharp, lit, moving shots of 1 to 20 seconds, each once.

worldline curate FOLDER --out curated --recipe footage
"""

from __future__ import annotations

from worldline.curate.plan import CuratePlan


def curate() -> CuratePlan:
    """The defaults of every stage."""
    return CuratePlan()
