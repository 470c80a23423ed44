"""The table of jobs, in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.serve.postgres import postgres, programs
from tests.serve.served import LIMIT, serving, until
from worldline.serve.jobs import MAX_ATTEMPTS, Job, Jobs, Once, Reused, new_id


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    if programs() is None:
        pytest.skip("no PostgreSQL here; `apt-get install postgresql` brings it")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    return str(request.getfixturevalue("server_url"))


@pytest.fixture
def jobs(url: str) -> Iterator[Jobs]:
    table = Jobs(url)
    for name in ("jobs", "engines", "characters", "keys"):
        run(table, f"DELETE FROM {name}")
    yield table
    table.engine.dispose()


def run(jobs: Jobs, sql: str) -> None:
    with jobs.engine.begin() as connection:
        connection.execute(text(sql))


def job(**more: Any) -> Job:
    work = {"verb": "generate"}
    about = {"owner": "me", "model": "m", "called": "m", "prompt": "ü\U0001f600", "size": "64x64", "seconds": "1"}
    return Job(**{"id": new_id("video"), "work": work, "created_at": time.time(), **about, **more})


def add(jobs: Jobs, **more: Any) -> str:
    one = job(**more)
    assert jobs.add(one, 10_000)
    return one.id


def test_many_that_ask_at_once_with_one_key_get_one_job(jobs: Jobs) -> None:
    gate, given = threading.Barrier(8), []

    def ask() -> None:
        gate.wait(30)
        given.append(jobs.add(job(), 10_000, Once("key", "digest")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(given) == 8
    assert len(set(given)) == 1
    assert sum(jobs.counts().values()) == 1
    with pytest.raises(Reused):
        jobs.add(job(), 10_000, Once("key", "other"))
    run(jobs, "UPDATE keys SET created_at = created_at - 90000")
    jobs.expire()
    assert jobs.add(job(), 10_000, Once("key", "other"))


def died(jobs: Jobs) -> None:
    """The lease of whoever holds something has run out."""
    run(jobs, "UPDATE jobs SET lease_until = 1 WHERE status = 'in_progress'")


def test_a_row_holds_what_was_put_in(jobs: Jobs) -> None:
    one = job(source="video_x", parents=["video_x"], kin="k")
    assert jobs.add(one, 1)
    assert jobs.get("me", one.id) == one
    assert jobs.get("you", one.id) is None
    assert not jobs.add(job(), 1)


def test_the_clock_of_the_database_is_that_of_the_world(jobs: Jobs) -> None:
    add(jobs)
    before = time.time()
    started = jobs.claim("e", "m")[0].started_at
    assert started is not None
    assert before - 1 <= started <= time.time() + 1


def test_the_oldest_goes_first_and_a_claim_is_one_engines(jobs: Jobs) -> None:
    made = [add(jobs) for _ in range(3)]
    add(jobs, model="other")
    claims = [jobs.claim(f"engine-{i}", "m") for i in range(4)]
    assert [one.id for claim in claims for one in claim] == sorted(made)
    assert claims[3] == []
    assert len({claim[0].claim for claim in claims[:3]}) == 3


def test_only_kin_is_taken_together(jobs: Jobs) -> None:
    kin = [
        add(jobs, kin="a"),
        add(jobs, kin="b"),
        add(jobs, kin="a"),
        add(jobs),
        add(jobs, kin="a"),
        add(jobs, kin="a"),
    ]
    first = jobs.claim("e", "m", most=3)
    assert [one.id for one in first] == sorted([kin[0], kin[2], kin[4]])
    assert len({one.claim for one in first}) == 1
    assert [one.id for one in jobs.claim("e", "m", most=3)] == [kin[1]]
    assert [one.id for one in jobs.claim("e", "m", most=3)] == [kin[3]]


def test_many_engines_take_every_job_once(jobs: Jobs, url: str) -> None:
    made = {add(jobs) for _ in range(40)}
    taken: list[str] = []

    def engine(number: int) -> None:
        table = Jobs(url)
        while claimed := table.claim(f"engine-{number}", "m", most=2):
            for one in claimed:
                assert table.complete(one.id, str(one.claim), "f", {}, None)
                taken.append(one.id)
        table.engine.dispose()

    threads = [threading.Thread(target=engine, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert Counter(taken) == Counter(made)


def test_a_lost_claim_ends_nothing(jobs: Jobs) -> None:
    name = add(jobs)
    old = str(jobs.claim("dead", "m")[0].claim)
    died(jobs)
    new = str(jobs.claim("alive", "m")[0].claim)
    assert jobs.beat(old, step=5) == set()
    assert not jobs.complete(name, old, "old", {}, None)
    assert not jobs.fail(name, old, "x", "x")
    assert jobs.beat(new, step=1, steps=2) == {name}
    assert jobs.complete(name, new, "new", {"width": 1}, 60)
    assert jobs.complete(name, new, "new", {"width": 1}, 60)  # asked again because the answer was lost
    ended = jobs.get("me", name)
    assert ended is not None
    assert (ended.status, ended.files, ended.progress) == ("completed", "new", 100)
    assert ended.expires_at is not None
    assert ended.completed_at is not None
    assert ended.expires_at - ended.completed_at == pytest.approx(60, abs=1)


def test_a_job_that_kills_its_engines_fails_with_a_reason(jobs: Jobs) -> None:
    name, after = add(jobs), add(jobs)
    for attempt in range(MAX_ATTEMPTS):
        assert [one.id for one in jobs.claim("e", "m")] == [name]
        assert jobs.release("e") == 1 if attempt % 2 else not died(jobs)
    assert [one.id for one in jobs.claim("e", "m")] == [after]
    ended = jobs.get("me", name)
    assert ended is not None
    assert (ended.status, ended.code) == ("failed", "engine_died")


def test_what_is_put_back_by_choice_costs_no_attempt(jobs: Jobs) -> None:
    name = add(jobs)
    for _ in range(MAX_ATTEMPTS + 2):
        assert [one.id for one in jobs.claim("e", "m")] == [name]
        assert jobs.release("e", blameless=True) == 1


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_what_is_stopped_stays_stopped(jobs: Jobs, how: str) -> None:
    name = add(jobs)
    claim = str(jobs.claim("e", "m")[0].claim)
    assert not getattr(jobs, how)("you", name)
    assert getattr(jobs, how)("me", name)
    assert not getattr(jobs, how)("me", name)
    assert jobs.beat(claim) == set()
    assert not jobs.complete(name, claim, "f", {}, None)
    died(jobs)
    assert jobs.release("e") == 0
    assert jobs.claim("e", "m") == []


def test_engines_are_known_while_they_say_so(jobs: Jobs) -> None:
    jobs.seen("e", "m")
    jobs.seen("e", "m")
    assert jobs.engines() == ["e"]
    run(jobs, "UPDATE engines SET seen = 1")
    assert jobs.engines() == []


def test_two_workers_of_one_database_share_its_jobs(server_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, engine=False, database_url=server_url) as server:
        run(server.jobs, "DELETE FROM jobs")
        command = [sys.executable, "-m", "tests.serve.fake", str(tmp_path / "data"), server_url, "4", "0.05"]
        workers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
        try:
            until(lambda: len(server.jobs.engines()) == 2)
            names = [server.create(seed=seed)["id"] for seed in range(12)]
            until(lambda: server.jobs.counts().get("in_progress"))
            workers[0].kill()
            workers[0].wait(LIMIT)
            workers[0] = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # puts back what it held under its name
            assert {server.wait(name)["status"] for name in names} == {"completed"}
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait(LIMIT)
