"""Text over a picture: titles, subtitles, watermarks. Found by RapidOCR, whose nets come inside its package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from worldline.curate.stage import Judgement, Look, Stage
from worldline.errors import UserError


@dataclass(frozen=True)
class Text(Stage):
    """The part of the picture that lines of readable text cover, about once a second.

    A line that is found must be read as well: nets that look for text also find it in bricks and leaves.
    """

    name: ClassVar[str] = "text"
    close: ClassVar[bool] = True

    most: float = 0.01  # of the picture; one line of subtitles covers about two hundredths
    sure: float = 0.8  # least mean probability of what was read
    letters: int = 2  # a line of fewer is none
    short_side: int = 480

    def check(self) -> None:
        """Raises UserError without the extra `ocr`."""
        _reader()

    def see(self, look: Look) -> float | None:
        if not look.new_second:
            return None
        picture = look.sized(self.short_side)
        read = _reader()(picture, use_det=True, use_cls=False, use_rec=True)
        if read.boxes is None or read.txts is None:
            return 0.0
        lines = [
            box
            for box, text, score in zip(read.boxes, read.txts, read.scores, strict=True)
            if score >= self.sure and sum(letter.isalnum() for letter in text) >= self.letters
        ]
        return sum(_area(np.asarray(box)) for box in lines) / (picture.shape[0] * picture.shape[1])

    def judge(self, notes: Sequence[float | None], size: tuple[int, int]) -> Judgement:
        shares = [share for share in notes if share is not None]
        if not shares:
            return Judgement(remark="too short to measure")
        share = float(np.median(shares))
        reason = f"text over {share:.1%} of the picture, at most {self.most:.1%}" if share > self.most else ""
        return Judgement({"text": share}, reason=reason)


def _area(box: np.ndarray) -> float:
    """Of a quadrilateral (4, 2) in order (the shoelace formula)."""
    x, y = box[:, 0].astype(float), box[:, 1].astype(float)
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


@cache
def _reader() -> Any:
    """RapidOCR on one thread, from the files of its package alone; made once in a process."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise UserError("--with text needs the extra `ocr`; install it with `pip install 'worldline[ocr]'`") from None
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False, **threads})
