"""What is judged of edits: a perfect answer passes, another's frames do not, and a wrong shape is no answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.checkpoints.folder import Parts
from worldline.errors import UserError
from worldline.eval import verbs
from worldline.eval.runner import GROUND_TRUTH, RECONSTRUCTED
from worldline.generate import edit
from worldline.generate.pipeline import Pipeline

SIZE = (64, 64)


def test_cases_are_pure_lone_and_moving() -> None:
    cases = verbs.sample_cases(6, seed=1)
    assert cases == verbs.sample_cases(6, seed=1) != verbs.sample_cases(6, seed=2)
    assert all(case.scene.count == 1 and not case.scene.event for case in cases)
    with pytest.raises(UserError, match="--n"):
        verbs.sample_cases(1, seed=1)


def test_a_perfect_answer_passes_and_anothers_does_not() -> None:
    n = 4
    truths = {
        verb: [verbs.TRIALS[verb](case, SIZE).truth for case in verbs.sample_cases(n, 0)] for verb in verbs.TRIALS
    }
    results = verbs.run_verbs(lambda verb, trial, seed: truths[verb][seed], n, 0, reconstruct=lambda frames: frames)
    for verb in verbs.TRIALS:
        rates = results.report.rates(verb)["everything"]
        for name in set(rates) - {"all"} - ({"join"} if verb == "blend" else set()):  # new colours are a step
            sudden = name in ("join", "loop")  # as a true leap or a contact with the floor is
            assert rates[name].right >= rates[name].total / (2 if sudden else 1), (verb, name)
        for ceiling in (GROUND_TRUTH, RECONSTRUCTED):
            assert results.report.rates(f"{verb}, {ceiling}")["everything"] == rates
        assert results.report.rates(f"{verb}, {verbs.FLOOR}")["everything"]["all"].share < 0.8, verb
    assert "x median step" in results.table()
    assert results.as_dict()["figures"]["extend"]["join"]


def test_frames_of_another_shape_are_no_answer() -> None:
    results = verbs.run_verbs(lambda verb, trial, seed: np.zeros((3, 8, 8, 3), np.uint8), 2, 0, ["remix"])
    assert results.report.rates("remix")["everything"]["all"].right == 0
    with pytest.raises(UserError, match="one of animate"):
        verbs.run_verbs(lambda verb, trial, seed: np.zeros(0), 2, 0, ["remixx"])


def test_a_trial_is_what_its_verb_takes_and_makes(micro_parts: Parts) -> None:
    """Every verb of a real pipeline answers with the frames that the truth has, known ones untouched."""
    pipeline = Pipeline(micro_parts, device="cpu", dtype=torch.float32)

    for verb, make in verbs.TRIALS.items():
        trial = make(verbs.sample_cases(2, 0)[0], SIZE)
        frames = getattr(edit, verb)(pipeline, *trial.arguments, steps=1, **trial.settings).frames
        assert frames.shape == trial.truth.shape, verb
        assert np.array_equal(frames, trial.kept(frames)), verb
