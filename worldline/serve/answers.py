"""What clients are answered: a job, a character, a job's events as they come, a file or a range of it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, BinaryIO, cast

from fastapi.responses import Response, StreamingResponse

from worldline.serve import schemas
from worldline.serve.jobs import Job, Jobs
from worldline.serve.orders import Facts, Order
from worldline.serve.refusals import Refused
from worldline.serve.store import Store

LOOK = 0.2  # seconds between two looks at a job whose events are read
SIGN_OF_LIFE = 15.0  # seconds after which a stream of events says that it is still there
CHUNK = 1 << 16  # bytes that are sent at once


def shown(job: Job) -> schemas.Video:
    """A job as its owner sees it."""
    order = Order.read(job.work)
    facts = Facts.of(job.facts) if job.facts else order.facts
    return schemas.Video(
        id=job.id, model=job.called, status=cast(Any, job.status), progress=job.progress, prompt=job.prompt,
        created_at=int(job.created_at),
        completed_at=_whole(job.completed_at if job.status == "completed" else None),
        expires_at=_whole(job.expires_at), size=job.size, seconds=job.seconds,
        remixed_from_video_id=job.source,
        error=None if job.code is None else schemas.Failure(code=job.code, message=job.message or ""),
        worldline=schemas.Details(
            edit=order.verb, seed=order.settings["seed"], step=job.step, steps=job.steps, seconds_left=job.left,
            width=facts.width, height=facts.height, frames=facts.frames, fps=float(facts.fps),
            made_from=list(job.parents), rewritten_from=order.settings.get("rewritten_from"),
        ),
    )  # fmt: skip


def named(row: Mapping[str, Any]) -> schemas.Character:
    """A character as its owner sees it."""
    return schemas.Character(id=row["id"], name=row["name"], created_at=int(row["created_at"]))


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


async def told(jobs: Jobs, owner: str, name: str) -> AsyncIterator[str]:
    """Server-sent events of one job (https://html.spec.whatwg.org/multipage/server-sent-events.html): `progress` with
    the video, and its `preview` where that is new, then `completed`, `failed` or `deleted`."""
    before: dict[str, Any] | None = None
    preview, quiet = None, 0.0
    while True:
        job = await asyncio.to_thread(jobs.get, owner, name)
        if job is None:
            yield _event("deleted", {"id": name})
            return
        video = shown(job).model_dump()
        data = dict(video)
        if job.preview is not None and job.preview != preview:
            preview = job.preview
            data["preview"] = "data:image/webp;base64," + base64.b64encode(preview).decode()
        if video != before or "preview" in data or job.ended:
            before, quiet = video, 0.0
            yield _event(job.status if job.ended else "progress", data)
        if job.ended:
            return
        quiet += LOOK
        if quiet >= SIGN_OF_LIFE:
            quiet = 0.0
            yield ": still there\n\n"
        await asyncio.sleep(LOOK)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def content(store: Store, key: str, kind: str, asked: str | None) -> Response:
    """A file, or the range of it that was asked for (RFC 9110, 14); raises FileNotFoundError."""
    file, size = store.open(key), store.size(key)
    headers = {"accept-ranges": "bytes", "cache-control": "private, max-age=3600"}
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked or "")
    if match is None or match[0] == "bytes=-":  # none, or one that may be ignored
        headers["content-length"] = str(size)
        return StreamingResponse(_pieces(file, 0, size), headers=headers, media_type=kind)
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    stop = min(size, int(match[2]) + 1) if match[1] and match[2] else size
    if first >= stop:
        file.close()
        raise Refused(416, f"range: the file has {size} bytes", "range", headers={"content-range": f"bytes */{size}"})
    headers |= {"content-length": str(stop - first), "content-range": f"bytes {first}-{stop - 1}/{size}"}
    return StreamingResponse(_pieces(file, first, stop), 206, headers=headers, media_type=kind)


def _pieces(file: BinaryIO, first: int, stop: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while first < stop and (piece := file.read(min(CHUNK, stop - first))):
            first += len(piece)
            yield piece
