"""The table of jobs. Every change is one statement: whoever is killed, a job is accepted, taken and ended once.

A job is `queued`, then `in_progress` under a claim that its engine must renew, then `completed` or `failed`. Only the
holder of the claim may end it, so an engine that was cancelled, deleted or thought dead ends nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    JSON,
    Column,
    CursorResult,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    and_,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from worldline.errors import UserError

LEASE = 10.0  # seconds after which an engine that says nothing is thought dead
MAX_ATTEMPTS = 5  # a job under which so many engines died is at fault itself
KEPT = 24 * 3600.0  # seconds for which a request that is sent again is known
BUSY = 15.0  # seconds to wait for another writer of an SQLite file

metadata = MetaData()
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),  # sorts by time, see `new_id`
    Column("owner", String(64), nullable=False),
    Column("model", String(200), nullable=False),  # which engines may take it
    Column("called", String(200), nullable=False),  # the model as the client named it
    Column("prompt", Text, nullable=False),
    Column("size", String(20), nullable=False),
    Column("seconds", String(20), nullable=False),
    Column("work", JSON, nullable=False),  # see `orders.Order`
    Column("kin", String(64)),  # jobs of one kin can be packed into one sequence
    Column("source", String(64)),  # the video that it was made from
    Column("parents", JSON, nullable=False, default=list),  # ids of all that it was made from
    Column("status", String(20), nullable=False, default="queued"),
    Column("step", Integer, nullable=False, default=0),
    Column("steps", Integer, nullable=False, default=0),
    Column("left", Float),  # seconds that the engine expects to need
    Column("preview", LargeBinary),  # WebP
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("expires_at", Float),
    Column("code", String(60)),
    Column("message", Text),
    Column("files", String(200)),  # folder of the finished files in the store; None before, and after they expired
    Column("facts", JSON),  # width, height, frames and fps of the finished video
    Column("engine", String(64)),
    Column("claim", String(64)),
    Column("lease_until", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Index("jobs_by_owner", "owner", "id"),
    Index("jobs_by_status", "status", "model", "id"),
)
characters = Table(
    "characters",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("name", String(80), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("facts", JSON, nullable=False),
)
keys = Table(  # of requests that may be sent again, see `Once`
    "keys",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("job", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)
engines = Table(
    "engines",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("seen", Float, nullable=False),
)


class now(FunctionElement[float]):
    """Seconds since 1970 by the clock of the database, the one that all machines share."""

    type = Float()
    inherit_cache = True


@compiles(now)
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


@dataclass(frozen=True)
class Job:
    """One row; see the table for what its fields hold."""

    id: str
    owner: str
    model: str
    called: str
    prompt: str
    size: str
    seconds: str
    work: dict[str, Any]
    created_at: float
    kin: str | None = None
    source: str | None = None
    parents: Sequence[str] = ()
    status: str = "queued"
    step: int = 0
    steps: int = 0
    left: float | None = None
    preview: bytes | None = None
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    code: str | None = None
    message: str | None = None
    files: str | None = None
    facts: dict[str, Any] | None = None
    claim: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed")

    @property
    def progress(self) -> int:
        """Percent; 100 only when the file can be fetched."""
        if self.status == "completed":
            return 100
        return min(99, 100 * self.step // self.steps) if self.steps else 0


class Once(NamedTuple):
    """What makes two requests of an owner one: the key that it gave them, and the SHA-256 of all that it sent."""

    key: str
    digest: str


class Reused(Exception):
    """A key that stands for another request."""


COLUMNS = [jobs.c[field.name] for field in fields(Job)]
LIVE = jobs.c.status.in_(("queued", "in_progress"))


def new_id(kind: str) -> str:
    """An id nobody can guess, a later one the greater: `video_`, 12 digits of milliseconds, 20 of chance."""
    return f"{kind}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def born(name: str) -> float | None:
    """When an id was made, in seconds; None for a name that is none."""
    digits = name.partition("_")[2][:12]
    try:
        return int(digits, 16) / 1000
    except ValueError:
        return None


class Jobs:
    """The jobs of one database, for any number of threads and processes."""

    def __init__(self, url: str) -> None:
        self.engine = open_database(url)

    # ---- what the API does ---------------------------------------------------------------------

    def add(self, job: Job, most: int, once: Once | None = None) -> str | None:
        """Accepts a job, durably, and returns its id; None where `most` jobs are waiting or in work already.

        A request that was accepted before is not accepted again: the id is then that of the job of then. Raises Reused.
        """
        values = {field.name: getattr(job, field.name) for field in fields(Job)}
        values["parents"] = list(job.parents)
        columns = [jobs.c[name] for name in values] + [jobs.c.attempts]
        waiting = select(func.count()).select_from(jobs).where(LIVE).scalar_subquery()
        row = select(*(literal(value, jobs.c[name].type) for name, value in values.items()), literal(0))
        added = insert(jobs).from_select(columns, row.where(waiting < most)).returning(jobs.c.id)
        try:
            with self.engine.begin() as connection:
                if once is not None:
                    own = {"owner": job.owner, "job": job.id, "created_at": now(), **once._asdict()}
                    connection.execute(insert(keys).values(**own))
                name: str | None = connection.scalar(added)
                if name is None:
                    connection.rollback()
                return name
        except IntegrityError:
            if once is None:
                raise
            return self._accepted(job.owner, once)

    def _accepted(self, owner: str, once: Once) -> str:
        """The id of the job that a request was accepted as."""
        held = select(keys.c.job, keys.c.digest).where(keys.c.owner == owner, keys.c.key == once.key)
        with self.engine.connect() as connection:
            row = connection.execute(held).one()
        if row.digest != once.digest:
            raise Reused
        return str(row.job)

    def get(self, owner: str, name: str) -> Job | None:
        """The job of that id, if it is the owner's."""
        return self._one(and_(jobs.c.id == name, jobs.c.owner == owner))

    def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> list[Job]:
        """Up to `limit` jobs of an owner, those that follow `after`, which itself may be gone."""
        found = select(*COLUMNS).where(jobs.c.owner == owner)
        if after is not None:
            found = found.where(jobs.c.id < after if newest_first else jobs.c.id > after)
        found = found.order_by(jobs.c.id.desc() if newest_first else jobs.c.id).limit(limit)
        with self.engine.connect() as connection:
            return [Job(**row._mapping) for row in connection.execute(found)]

    def cancel(self, owner: str, name: str) -> bool:
        """Ends a job that has not ended; its engine notices at the next step."""
        mine = and_(jobs.c.id == name, jobs.c.owner == owner, LIVE)
        return self._change(update(jobs).where(mine).values(**_ending("cancelled", "cancelled by the client"))) == 1

    def delete(self, owner: str, name: str) -> bool:
        """Removes a job in any state; its engine notices at the next step."""
        return self._change(delete(jobs).where(jobs.c.id == name, jobs.c.owner == owner)) == 1

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        found = select(jobs.c.status, func.count()).group_by(jobs.c.status)
        with self.engine.connect() as connection:
            return {status: count for status, count in connection.execute(found)}

    def engines(self) -> list[str]:
        """The engines that were seen of late."""
        with self.engine.connect() as connection:
            return list(connection.scalars(select(engines.c.id).where(engines.c.seen > now() - LEASE)))

    def add_character(self, values: dict[str, Any]) -> None:
        self._change(insert(characters).values(**values))

    def character(self, owner: str, name: str) -> dict[str, Any] | None:
        mine = select(characters).where(characters.c.id == name, characters.c.owner == owner)
        with self.engine.connect() as connection:
            row = connection.execute(mine).first()
        return None if row is None else dict(row._mapping)

    # ---- what an engine does -------------------------------------------------------------------

    def claim(self, engine: str, model: str, most: int = 1) -> list[Job]:
        """Takes the oldest job that waits, or whose engine died, and up to `most` in all that can be packed with it."""
        lost = and_(jobs.c.status == "in_progress", jobs.c.lease_until < now())
        hopeless = and_(or_(jobs.c.status == "queued", lost), jobs.c.attempts >= MAX_ATTEMPTS)
        died = f"the engine died {MAX_ATTEMPTS} times at this job"
        self._change(update(jobs).where(hopeless).values(**_ending("engine_died", died)))
        waiting = and_(jobs.c.model == model, or_(jobs.c.status == "queued", lost))
        claim = secrets.token_hex(8)
        taken = self._take(waiting, 1, engine, claim)
        if taken and taken[0].kin is not None and most > 1:
            kin = and_(jobs.c.status == "queued", jobs.c.model == model, jobs.c.kin == taken[0].kin)
            taken += self._take(kin, most - 1, engine, claim)
        return taken

    def _take(self, which: Any, most: int, engine: str, claim: str) -> list[Job]:
        # A locked row is another engine's by the time that it is free. SQLite has one writer at a time.
        found = select(jobs.c.id).where(which).order_by(jobs.c.id).limit(most).with_for_update(skip_locked=True)
        ready = found.cte("ready")
        values: dict[str, Any] = {
            "status": "in_progress",
            "engine": engine,
            "claim": claim,
            "lease_until": now() + LEASE,
        }
        values |= {"started_at": now(), "attempts": jobs.c.attempts + 1, "step": 0, "steps": 0, "left": None}
        taken = update(jobs).where(jobs.c.id.in_(select(ready.c.id))).values(**values).returning(*COLUMNS)
        with self.engine.begin() as connection:
            return sorted((Job(**row._mapping) for row in connection.execute(taken)), key=lambda job: job.id)

    def beat(self, claim: str, **seen: Any) -> set[str]:
        """Renews a claim and notes `seen` (step, steps, left, preview); the ids of the jobs that are still its own."""
        mine = and_(jobs.c.claim == claim, jobs.c.status == "in_progress")
        beat = update(jobs).where(mine).values(lease_until=now() + LEASE, **seen).returning(jobs.c.id)
        with self.engine.begin() as connection:
            return set(connection.scalars(beat))

    def show(self, name: str, claim: str, preview: bytes) -> None:
        """Keeps a picture of a job in work."""
        mine = and_(jobs.c.id == name, jobs.c.claim == claim, jobs.c.status == "in_progress")
        self._change(update(jobs).where(mine).values(preview=preview))

    def complete(self, name: str, claim: str, files: str, facts: dict[str, Any], keep: float | None) -> bool:
        """Ends a job well, its files in the store for `keep` seconds; False where it is no longer the claim's."""
        mine = and_(jobs.c.id == name, jobs.c.claim == claim, jobs.c.status == "in_progress")
        values = {"status": "completed", "files": files, "facts": facts, "completed_at": now(), "left": 0.0}
        values |= {"expires_at": None if keep is None else now() + keep, "preview": None, "engine": None}
        if self._change(update(jobs).where(mine).values(**values)):
            return True
        # It may have been this very change, asked for twice because its answer was lost.
        job = self._one(jobs.c.id == name)
        return job is not None and job.files == files

    def fail(self, name: str, claim: str, code: str, message: str) -> bool:
        """Ends a job with a reason; False where it is no longer the claim's."""
        mine = and_(jobs.c.id == name, jobs.c.claim == claim, jobs.c.status == "in_progress")
        return self._change(update(jobs).where(mine).values(**_ending(code, message))) == 1

    def release(self, engine: str, blameless: bool = False) -> int:
        """Puts back what an engine holds that is gone; `blameless`: it does not count as an attempt."""
        held = and_(jobs.c.engine == engine, jobs.c.status == "in_progress")
        attempts = jobs.c.attempts - (1 if blameless else 0)
        values = {"status": "queued", "engine": None, "claim": None, "attempts": attempts}
        return self._change(update(jobs).where(held).values(**values))

    def seen(self, engine: str, model: str) -> None:
        """Notes that an engine lives."""
        if not self._change(update(engines).where(engines.c.id == engine).values(seen=now(), model=model)):
            self._change(insert(engines).values(id=engine, model=model, seen=now()))

    def gone(self, engine: str) -> None:
        """Notes that an engine ended."""
        self._change(delete(engines).where(engines.c.id == engine))

    # ---- what the keeper of the store does -----------------------------------------------------

    def expire(self) -> list[str]:
        """Lets go of files whose time has come, and of keys; the folders of the files in the store."""
        self._change(delete(keys).where(keys.c.created_at < now() - KEPT))
        due = and_(jobs.c.status == "completed", jobs.c.files.is_not(None), jobs.c.expires_at < now())
        with self.engine.begin() as connection:
            folders = list(connection.execute(select(jobs.c.id, jobs.c.files).where(due)))
            for name, files in folders:
                connection.execute(update(jobs).where(jobs.c.id == name, jobs.c.files == files).values(files=None))
        return [files for _, files in folders]

    def wanted(self, name: str) -> str | None:
        """What of the files under an id is wanted: "" for all, the folder of a job that ended, None for nothing."""
        job = self._one(jobs.c.id == name)
        if job is not None:
            return (job.files or "none") if job.ended else ""
        with self.engine.connect() as connection:
            return None if connection.scalar(select(characters.c.id).where(characters.c.id == name)) is None else ""

    def _one(self, which: Any) -> Job | None:
        with self.engine.connect() as connection:
            row = connection.execute(select(*COLUMNS).where(which)).first()
        return None if row is None else Job(**row._mapping)

    def _change(self, statement: Any) -> int:
        with self.engine.begin() as connection:
            return cast(CursorResult[Any], connection.execute(statement)).rowcount


def _ending(code: str, message: str) -> dict[str, Any]:
    values = {"status": "failed", "code": code, "message": message, "completed_at": now(), "preview": None}
    return {**values, "engine": None, "claim": None, "left": None}


def open_database(url: str) -> Engine:
    """The database at an SQLAlchemy URL, its tables made where they are not yet there. Raises UserError."""
    sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY}} if sqlite else {"pool_size": 20, "pool_timeout": 10}
    try:
        engine = create_engine(url, pool_pre_ping=not sqlite, hide_parameters=True, **options)
    except ImportError:
        raise UserError("--database-url: needs the extra postgres; pip install 'worldline[postgres]'") from None
    if sqlite:
        event.listen(engine, "connect", _durable)
    try:
        metadata.create_all(engine)
    except DBAPIError:  # another process may have made them in between
        try:
            metadata.create_all(engine)
        except DBAPIError as error:
            where = engine.url.render_as_string(hide_password=True)
            raise UserError(f"--database-url {where}: cannot be opened ({type(error.orig).__name__})") from None
    return engine


def _durable(connection: Any, _: Any) -> None:
    """Readers beside a writer, and a commit that outlives the power (https://sqlite.org/wal.html)."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={int(1000 * BUSY)}"):
        connection.execute(f"PRAGMA {pragma}").close()
