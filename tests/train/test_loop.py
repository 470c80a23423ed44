"""The loop: stops, resumes, skips and logs without changing a bit of the result."""

import dataclasses
import errno
import json
import math
import os
import signal

import pytest
import torch

from tests.train.toys import ToyPlan, toy_task
from worldline.errors import UserError
from worldline.train import checkpoint
from worldline.train.loop import Hook, train
from worldline.train.optim import learning_rate
from worldline.train.plan import OptimPlan

FILE = "shard-00001-model-00001-of-00001.safetensors"  # of the first process


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_sigterm_saves_and_resume_ends_in_the_same_bits(tmp_path):
    plan = ToyPlan()
    whole = train(toy_task(plan), plan, tmp_path / "whole", quiet=True)

    def terminate(step):
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(toy_task(plan, terminate), plan, tmp_path / "cut", quiet=True)
    assert (first.step, first.finished) == (14, False)
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints")[-1] == 14
    second = train(toy_task(plan), plan, tmp_path / "cut", resume=True, quiet=True)
    assert second.finished
    assert same(whole.weights, second.weights)


def test_damaged_newest_checkpoint_falls_back_and_ends_in_the_same_bits(tmp_path, capsys):
    plan = ToyPlan()
    whole = train(toy_task(plan), plan, tmp_path / "run", quiet=True)
    newest = tmp_path / "run" / "checkpoints" / "step-00000030"
    data = (newest / FILE).read_bytes()
    (newest / FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = train(toy_task(plan), plan, tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert f"step-00000030 is damaged ({FILE} does not match its SHA-256)" in said
    assert "resumed at step 20" in said
    assert same(whole.weights, again.weights)


def test_a_poisoned_batch_is_skipped_and_recorded(tmp_path):
    plan = ToyPlan()
    poison = lambda step: "poison" if step in (4, 5) else None  # noqa: E731
    outcome = train(toy_task(plan, poison), plan, tmp_path, quiet=True)
    assert all(value.isfinite().all() for value in outcome.weights.values())
    state = checkpoint.load(tmp_path / "checkpoints" / "step-00000030").state
    assert (state["skipped"], state["updates"]) == (2, 28)
    skips = [r for r in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "skipped" in r]
    assert [record["step"] for record in skips] == [5, 6]
    assert [record["samples"] for record in skips] == [["4/0"], ["5/0"]]


def test_a_run_of_nothing_but_nan_gives_up_in_one_line(tmp_path):
    plan = ToyPlan()
    plan = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, steps=1000))
    with pytest.raises(UserError, match=r"optim\.lr: 11 updates in a row were not finite"):
        train(toy_task(plan, lambda step: "poison"), plan, tmp_path, quiet=True)


def test_a_stretch_of_bad_samples_is_passed_over_from_the_last_checkpoint(tmp_path, capsys):
    plan = ToyPlan()
    plan = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, skips=2))
    seen = []

    def poison(step):
        seen.append(step)
        return "poison" if 14 <= step < 17 else None

    outcome = train(toy_task(plan, poison), plan, tmp_path)
    # Steps 10 to 13 are learned again from the samples that follow the bad ones, which never come back.
    assert seen == [*range(17), *range(17, 37)]
    assert "3 updates in a row were not finite: back at step 10" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "checkpoints" / "step-00000030").state
    assert (state["skipped"], state["updates"], state["passed"], state["rollbacks"]) == (3, 30, 7, 1)
    again = train(toy_task(plan, poison), plan, tmp_path, resume=True, quiet=True)
    assert same(outcome.weights, again.weights)


def test_bad_samples_without_end_are_given_up(tmp_path):
    plan = ToyPlan()
    plan = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, skips=1, rollbacks=2))
    with pytest.raises(UserError, match=r"optim\.lr: 2 updates in a row were not finite"):
        train(toy_task(plan, lambda step: "poison" if step >= 12 else None), plan, tmp_path, quiet=True)
    state = checkpoint.load(tmp_path / "checkpoints" / "step-00000010").state
    assert state["rollbacks"] == 2


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(tmp_path, monkeypatch, capsys):
    plan = ToyPlan()
    whole = train(toy_task(plan), plan, tmp_path / "whole", quiet=True)
    publish = checkpoint._publish

    def full(part, final, state):
        if state["step"] == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(part, final, state)

    monkeypatch.setattr(checkpoint, "_publish", full)
    outcome = train(toy_task(plan), plan, tmp_path / "run")
    assert "step 20: no checkpoint (No space left on device); the one before is kept" in capsys.readouterr().out
    assert sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000030",
    ]
    assert same(whole.weights, outcome.weights)


def test_an_old_run_is_never_overwritten(tmp_path):
    plan = ToyPlan()
    train(toy_task(plan), plan, tmp_path, quiet=True)
    with pytest.raises(UserError, match="--resume"):
        train(toy_task(plan), plan, tmp_path, quiet=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    plan = ToyPlan()
    train(toy_task(plan), plan, tmp_path, quiet=True)
    task = toy_task(plan)
    task.model = torch.nn.Linear(8, 8)
    with pytest.raises(UserError, match="another model"):
        train(task, plan, tmp_path, resume=True, quiet=True)


def test_hooks_see_the_average_and_change_nothing(tmp_path):
    plan = ToyPlan()
    plain = train(toy_task(plan), plan, tmp_path / "plain", quiet=True)
    seen = []

    def spoil(step, model, folder):
        seen.append(step)
        with torch.no_grad():
            next(model.parameters()).zero_()
        return {"score": 1.0}

    hooked = train(toy_task(plan), plan, tmp_path / "hooked", hooks=[Hook(12, spoil)], quiet=True)
    assert seen == [12, 24, 30]
    assert same(plain.weights, hooked.weights)
    for parameter, (name, _) in zip(plain.model.parameters(), plain.model.named_parameters(), strict=True):
        torch.testing.assert_close(parameter.float(), plain.weights[name], rtol=1e-2, atol=1e-3)


def test_time_limit_stops_and_saves(tmp_path):
    plan = ToyPlan()
    plan = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, minutes=1e-9))
    outcome = train(toy_task(plan), plan, tmp_path, quiet=True)
    assert (outcome.step, outcome.finished) == (1, False)
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]


def test_resume_drops_records_of_lost_steps(tmp_path):
    plan = ToyPlan()
    train(toy_task(plan), plan, tmp_path, quiet=True)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 35, "loss": 1.0}\n{"step": 3')  # steps after the checkpoint, the last line cut by a kill
    train(toy_task(plan), plan, tmp_path, resume=True, quiet=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert max(steps) == 30


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 1.0), ("linear", 0.505), ("cosine", 0.505)])
def test_schedules_warm_up_peak_and_end_where_they_say(schedule, middle):
    plan = OptimPlan(lr=2.0, warmup=10, final=0.01, schedule=schedule)
    assert learning_rate(plan, 0, 110) == pytest.approx(0.2)
    assert learning_rate(plan, 10, 110) == pytest.approx(2.0)
    assert learning_rate(plan, 60, 110) == pytest.approx(2.0 * middle)
    assert learning_rate(plan, 110, 110) == pytest.approx(2.0 if schedule == "constant" else 0.02)


def test_trapezoid_is_flat_then_falls_in_the_last_fifth():
    plan = OptimPlan(lr=1.0, warmup=0, final=0.0, schedule="trapezoid")
    assert learning_rate(plan, 80, 100) == pytest.approx(1.0)
    assert learning_rate(plan, 90, 100) == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"optim\.schedule"):
        learning_rate(OptimPlan(schedule="cosin", warmup=0), 1, 10)
    assert math.isclose(learning_rate(plan, 100, 100), 0.0, abs_tol=1e-12)
