"""Asks a model for one video per held-out prompt and reports whether it obeyed: what `worldline eval worlds` runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from worldline.errors import UserError
from worldline.eval.report import Report
from worldline.eval.worlds import Case, Verifier, evaluate, renders, sample_cases
from worldline.media.write import check_writable
from worldline.worlds import verify

BATCH = 16
GROUND_TRUTH, RECONSTRUCTED, SPOILT = "ceiling: ground truth", "ceiling: autoencoder", "floor: shuffled frames"

# (prompts, seeds) -> one video uint8 (T, H, W, 3) for each
Generate = Callable[[Sequence[str], Sequence[int]], Sequence[np.ndarray]]
# video uint8 (T, H, W, 3) -> the same after the model's autoencoder
Reconstruct = Callable[[np.ndarray], np.ndarray]


def run_worlds(
    generate: Generate,
    n: int = 256,
    seed: int = 0,
    out: Path | None = None,
    reconstruct: Reconstruct | None = None,
    verifier: Verifier = verify,
    fps: float = 16,
    style: str = "paraphrase",
    progress: Callable[[str, int, int], None] | None = None,
    cases: Sequence[Case] | None = None,
    spoil: Reconstruct | None = None,
) -> Report:
    """Prompts, videos, verdicts, beside ground truth, the autoencoder (with `reconstruct`) and shuffled prompts.

    `cases` are `n` held-out prompts unless given; `spoil` makes a further floor of the ground truth. Video i is drawn
    with seed `seed + i`. With `out` the report is also saved there, see Report.save; that the folder can be written
    is checked before anything is generated. Raises UserError for an unusable `out`.
    """
    if out is not None:
        prepare_folder(out)
    cases = sample_cases(n, seed, style) if cases is None else cases
    videos = _answers(generate, cases, seed)
    first = next(videos)
    frames, height, width = first.shape[:3]
    truths = list(renders(cases, frames, height, width, fps))
    others: dict[str, Iterator[np.ndarray]] = {GROUND_TRUTH: iter(truths)}
    if reconstruct is not None:
        others[RECONSTRUCTED] = map(reconstruct, truths)
    if spoil is not None:
        others[SPOILT] = map(spoil, truths)
    report = evaluate(itertools.chain([first], videos), cases, verifier, fps, others, progress)
    if out is not None:
        report.save(out)
    return report


def prepare_folder(out: Path) -> None:
    """Makes the folder of a report. Raises UserError when it cannot be made or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: cannot make folder {str(out)[:200]!r}; use another, such as ./report") from error
    check_writable(out / "report.json", True, (".json",))


def _answers(generate: Generate, cases: Sequence[Case], seed: int) -> Iterator[np.ndarray]:
    """The model's videos in the order of the cases, a batch at a time."""
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        yield from generate([case.prompt for case in batch], [seed + start + i for i in range(len(batch))])
