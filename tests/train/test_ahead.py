"""What is read ahead is what would have been read, whatever the run does next."""

import dataclasses
import threading

import pytest

from tests.train.test_loop import same
from tests.train.toys import ToyPlan, toy_task
from worldline.train.ahead import Ahead
from worldline.train.loop import train


def test_steps_are_made_before_they_are_asked_for():
    made = {step: threading.Event() for step in range(9)}

    def make(step):
        made[step].set()
        return step * step

    ahead = Ahead(make, readers=2)
    assert ahead(3, end=7) == 9
    for step in (4, 5, 6):
        assert made[step].wait(60)
    assert not any(made[step].is_set() for step in (0, 1, 2, 7, 8))  # nothing before, nothing past the end
    assert [ahead(step, end=9) for step in (4, 0, 8)] == [16, 0, 64]  # after a rollback, and further on
    ahead.close()


def test_an_error_is_raised_by_its_own_step():
    def make(step):
        if step == 2:
            raise OSError("unreadable")
        return step

    ahead = Ahead(make, readers=1)
    assert [ahead(step, end=9) for step in (0, 1)] == [0, 1]
    with pytest.raises(OSError, match="unreadable"):
        ahead(2, end=9)
    ahead.close()


def test_a_run_that_reads_ahead_ends_in_the_same_bits_and_leaves_no_thread(tmp_path):
    """Over a stretch of bad samples, from which it goes back and passes on."""
    plan = ToyPlan(loop=dataclasses.replace(ToyPlan().loop, skips=2))
    outcomes = []
    for readers in (0, 3):
        loop = dataclasses.replace(plan.loop, readers=readers)
        task = toy_task(plan, lambda step: "poison" if 14 <= step < 17 else None)
        outcomes.append(train(task, dataclasses.replace(plan, loop=loop), tmp_path / str(readers), quiet=True))
    assert same(outcomes[0].weights, outcomes[1].weights)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]
