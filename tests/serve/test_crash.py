"""Whatever is killed, every accepted job ends once, and nobody is served part of a file."""

from __future__ import annotations

from pathlib import Path

from tests.serve.crash import crash


def test_nothing_is_lost_and_nothing_ends_twice(tmp_path: Path) -> None:
    told = crash(tmp_path, jobs=12, kills=4, limit=300)
    bad = {name: told[name] for name in ("lost", "ended twice", "never ended", "partial")}
    assert bad == {"lost": 0, "ended twice": 0, "never ended": 0, "partial": 0}, told
    assert told["completed"] + told["failed"] == told["accepted"] == 12
