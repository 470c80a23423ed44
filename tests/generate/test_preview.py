"""Contact sheets that training writes now and then."""

from __future__ import annotations

from pathlib import Path

from worldline.checkpoints.folder import Parts
from worldline.generate.preview import reconstruction_sheet, sample_sheet
from worldline.media.read import read_image


def test_sheets_appear_under_their_step(micro_parts: Parts, tmp_path: Path) -> None:
    reconstruction_sheet(12, micro_parts.vae, tmp_path / "vae")
    sample_sheet(12, micro_parts, tmp_path / "dit")
    for run in ("vae", "dit"):
        height, width, _ = read_image(tmp_path / run / "samples/step-00000012.png").shape
        assert width > height / 8 > 0
