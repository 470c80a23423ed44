"""The ladder: rungs that follow from the plan, a run that goes on where it was left, a report of what it found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from worldline.cli import main
from worldline.dit.model import DiTConfig
from worldline.errors import UserError
from worldline.text import WordConfig
from worldline.train import scaling
from worldline.train.law import Point
from worldline.train.precompute import ClipsPlan
from worldline.train.vae import export
from worldline.vae.model import MICRO, VideoVAE


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Four tiny rungs, the last one foretold."""
    folder = tmp_path_factory.mktemp("scaling")
    torch.manual_seed(0)
    export(MICRO, VideoVAE(MICRO).state_dict(), folder / "vae")
    whole = scaling.ScalingPlan()
    base = replace(
        whole.base,
        vae=str(folder / "vae"),
        config=DiTConfig(width=16, heads=1, depth=1, text_width=16, rope_axes=(4, 6, 6), learned_positions=(8, 8, 8)),
        text=WordConfig(words=(), layers=1),
        clips=ClipsPlan(count=8, frames=9, height=32, width=32, slice=8, workers=0),
        batch=4,
        validate_clips=4,
        dtype="float32",
        loop=replace(whole.base.loop, checkpoint_every=4, log_every=4, validate_every=2),
    )
    return replace(
        whole, base=base, widths=(16, 32, 48, 64), depths=(1, 1, 1, 1), steps=(8, 8, 8, 8),
        rate_power=0.5, rates=(2.0,), rate_rungs=(0,), rate_steps=4, least_steps=2, draws=8,
    )  # fmt: skip


def quiet(line: str) -> None:
    pass


def test_rungs_follow_from_the_plan(plan) -> None:
    ladder = scaling.rungs(plan)
    assert [rung.name for rung in ladder] == ["16x1", "32x1", "48x1", "64x1"]
    for rung, width in zip(ladder, plan.widths, strict=True):
        assert rung.plan.optim.lr == pytest.approx(plan.rate * (plan.rate_width / width) ** 0.5)
        assert rung.tokens == 8 * 4 * 12
        assert rung.compute == pytest.approx(3 * 8 * 4 * scaling.DiT(rung.plan.config).flops(12, 12))
    assert [rung.name for rung in scaling.trials(plan)] == ["16x1-rate2"]


def test_the_ladder_is_run_foretold_and_checked_once(plan, tmp_path) -> None:
    said: list[str] = []
    report = scaling.run(plan, tmp_path, said.append)
    at = {
        line.split(":")[0]: number
        for number, line in enumerate(said)
        if "law foretells" in line or "parameters" in line
    }
    assert any("the law foretells" in line for line in said[: at["64x1"] + 1])
    foretold = next(number for number, line in enumerate(said) if "law foretells" in line)
    began = next(number for number, line in enumerate(said) if line.startswith("64x1:") and "parameters" in line)
    assert foretold < began  # and the others before
    assert [point.run for point in report.points].count("16x1") == 4  # steps 2, 4, 6, 8: at least 1.3 times apart
    assert {point.run for point in report.unseen} == {"64x1"}
    (told,) = report.told
    assert told.measured == pytest.approx(report.unseen[-1].loss)
    assert told.error == pytest.approx(told.predicted / told.measured - 1)
    assert set(report.rates) == {"16x1", "16x1-rate2"}
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "scaling.json").read_text())
    assert data["predictions"][0]["rung"] == "64x1"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/log.jsonl")}
    again = scaling.run(plan, tmp_path, quiet)  # everything is there already
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/log.jsonl")}
    assert again.as_dict() == report.as_dict()
    longer = replace(plan, steps=(10, 8, 8, 8))  # a constant rate: more steps continue the run
    assert scaling.run(longer, tmp_path, quiet).points[3].tokens == 10 * 4 * 12
    with pytest.raises(UserError, match=r"another plan \(seed: 0 -> 1\)"):
        scaling.run(replace(plan, base=replace(plan.base, seed=1)), tmp_path, quiet)

    advised = replace(report, rates={"16x1": 1.0, "16x1-rate0.5": 1.2, "16x1-rate2": 0.5}).advice()
    assert advised == ["rate: 16x1 learns faster at 2 times its rate (0.5000, not 1.0000)"]
    assert "no other" in replace(report, rates={"16x1": 1.0, "16x1-rate2": 0.995}).advice()[0]


def test_losses_are_thinned_from_the_last(plan, tmp_path) -> None:
    rung = scaling.rungs(replace(plan, steps=(32, 8, 8, 8)))[0]
    (tmp_path / rung.name).mkdir()
    lines = [json.dumps({"step": step, "val": 10.0 / step}) for step in range(2, 42, 2)]
    (tmp_path / rung.name / "log.jsonl").write_text("\n".join(lines) + "\n")
    found = scaling.losses(rung, tmp_path, 6)
    assert [point.tokens / rung.tokens_a_step for point in found] == [6, 8, 12, 18, 24, 32][-len(found) :]
    assert isinstance(found[0], Point)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depths": (1, 1)}, "widths, depths and steps"),
        ({"held_out": 2}, "held_out: 2 of 4"),
        ({"widths": (16, 32, 48, 50)}, "widths: 50 must be a multiple of 16"),
        ({"widths": (16, 32, 64, 48)}, "48x1 is no larger than 64x1"),
        ({"steps": (8, 8, 8, 7)}, "steps: 7 must be a multiple of 2"),
        ({"rate_rungs": (3,)}, "rate_rungs"),
    ],
)
def test_ladders_that_cannot_be_are_named(plan, change, words) -> None:
    with pytest.raises(UserError, match=words):
        scaling.rungs(replace(plan, **change))


def test_the_command_says_what_it_would_do(capsys) -> None:
    small = ["--set", "widths=32,48,64", "--set", "depths=1,1,1", "--set", "steps=250,250,250", "--set", "rates="]
    assert main(["scaling", "--dry-run", *small, "--set", "held_out=0", "--set", "rate_rungs="]) == 0
    assert "in all" in capsys.readouterr().out
    assert main(["scaling", "--dry-run", "--set", "widths=32"]) == 2
