"""The report of a curation is one file that shows kept and dropped clips, why, and who said what of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.curate.films import scene, write_film
from worldline.cli import main
from worldline.records import CAPTIONS, Caption, add_captions, read_manifest

pytest.importorskip("scenedetect")


def test_it_shows_kept_and_dropped_clips_with_reasons_and_captions(tmp_path: Path) -> None:
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    write_film(films / "a & <b>.mp4", np.concatenate([scene(1), scene(2)]))
    (films / "copy.mp4").write_bytes((films / "a & <b>.mp4").read_bytes())
    (films / "empty.mp4").write_bytes(b"")
    command = ["curate", str(films), "--out", str(out)]
    assert main(command) == 0
    assert not (out / "report.html").exists()
    first, second = read_manifest(out, kept=True)
    known = Caption(first.id, "a red ball", "full", "somebody", "1", sure=0.99)
    add_captions(out / CAPTIONS, [known, Caption(second.id, "a <dog>", "full", "somebody", "1", sure=0.5)])
    assert main([*command, "--report"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 4  # two kept, two copies
    assert page.count("<div class=none>") == 1  # the empty file
    for part in ("duplicates: shows the same as: 2", "probe: empty: 0 bytes", "a &amp; &lt;b&gt;.mp4", "a &lt;dog&gt;"):
        assert part in page
    assert len(re.findall("outside the domain", page)) == page.count("a &lt;dog&gt;")
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside the file
