"""A run's report: one file with curves, samples and plan inside, from whatever the run left behind."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.train.toys import ToyPlan, toy_task
from worldline.errors import UserError
from worldline.media.write import write_image
from worldline.train.log import RunLog
from worldline.train.loop import train
from worldline.train.report import chart, curves, read_log, told_apart, write_report


def plan():
    return SimpleNamespace(**{**vars(ToyPlan()), "name": "toy <run>", "device": "cpu"})


def test_a_run_is_told_in_one_file(tmp_path, monkeypatch) -> None:
    train(toy_task(ToyPlan()), ToyPlan(), tmp_path, quiet=True)
    (tmp_path / "samples").mkdir()
    for step in range(9):
        write_image(tmp_path / "samples" / f"step-{step:08d}.png", np.full((8, 12, 3), 20 * step, np.uint8))
    monkeypatch.setattr("worldline.train.report.describe", lambda plan: "seed 3")
    text = write_report(tmp_path, plan(), "finished").read_text()
    assert "step 30 of 30" in text
    assert "toy &lt;run&gt;" in text
    assert "<run>" not in text
    assert text.count("data:image/jpeg;base64,") == 6
    assert "step-00000008" in text
    assert "step-00000000" in text
    assert "http" not in text  # nothing is fetched
    assert text.count("<polyline") == len([n for n in curves(read_log(tmp_path / "log.jsonl"))])


def test_a_run_without_a_log_has_a_report_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("worldline.train.report.describe", lambda plan: "")
    assert "step 0 of 30" in write_report(tmp_path, plan(), "stopped").read_text()


def test_curves_of_a_kind_are_drawn_together_and_fit_into_their_chart() -> None:
    records = [
        {"step": s, "loss": 1 / s, "val": 2 / s, "val_0.2": 3.0, "note": "text", "skipped": 1} for s in (1, 2, 4)
    ]
    found = curves(records)
    assert set(found) == {"loss", "val"}
    assert found["val"] == {"val": [(1, 2.0), (2, 1.0), (4, 0.5)], "val_0.2": [(1, 3.0), (2, 3.0), (4, 3.0)]}
    for name, lines in found.items():
        drawn = chart(name, lines)
        for piece in drawn.split('points="')[1:]:
            pairs = [tuple(map(float, point.split(","))) for point in piece.split('"')[0].split()]
            assert all(0 <= x <= 330 and 0 <= y <= 170 for x, y in pairs)


def test_one_value_alone_is_a_chart() -> None:
    for value in (30.0, 0.0, -2.0):
        assert "<circle cx=187.0 cy=79.0 r=2.5" in chart("alone", {"alone": [(5, value)]})  # in the middle


def test_the_ends_of_an_axis_are_told_apart() -> None:
    assert told_apart(0.25, 30.0) == ("0.25", "30")
    assert told_apart(30.581, 30.594) == ("30.58", "30.59")


def test_a_tracker_hears_what_the_log_does(tmp_path, monkeypatch) -> None:
    heard = []
    fake = SimpleNamespace(
        init=lambda **about: heard.append(about),
        log=lambda values, step: heard.append((step, values)),
        finish=lambda: heard.append("done"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log = RunLog(tmp_path / "run", 0, quiet=True, track="trackio")
    log.record(3, {"loss": 0.5, "note": "text"})
    log.close()
    assert heard == [{"project": "worldline", "name": "run", "resume": "allow"}, (3, {"loss": 0.5}), "done"]
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text())["loss"] == 0.5


def test_a_tracker_that_is_not_there_is_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="one of trackio, wandb"):
        RunLog(tmp_path, 0, track="neptune")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"worldline\[wandb\]"):
        RunLog(tmp_path, 0, track="wandb")
