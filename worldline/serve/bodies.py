"""Reads what a client sent, as JSON or as a multipart form, under limits and without believing any of it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from worldline.serve.jobs import Once
from worldline.serve.refusals import Refused, bad
from worldline.serve.settings import Limits

MAX_DEPTH = 4  # of brackets in the name of a form field
MAX_PARTS = 400
SLOWEST = 2000  # bytes a second
SPOOLED = 1 << 20  # bytes that are held in memory rather than on disk
KEY = re.compile(r"[!-~]{1,255}")  # of a request that may be sent again
NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


class Upload:
    """A file that was sent: bytes that nobody has looked at yet."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    @classmethod
    def of(cls, data: bytes) -> Upload:
        file = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115, closed by `save`
        file.write(data)
        file.seek(0)
        return cls(cast(BinaryIO, file))

    def digest(self) -> str:
        """SHA-256 of the bytes."""
        self.file.seek(0)
        held = hashlib.file_digest(cast(Any, self.file), "sha256").hexdigest()
        self.file.seek(0)
        return held

    def save(self, path: Path) -> None:
        """Writes the bytes to a file."""
        with self.file as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)


@asynccontextmanager
async def opened(request: Request, limits: Limits) -> AsyncIterator[tuple[dict[str, Any], bool]]:
    """The fields of a body, and whether it was JSON: its types then are the client's own, where a form has but text.
    Files that were sent are closed with the context.

    Bracketed names of a form become what they stand for: `video[id]`, `cards[0][text]`, `keep[]`. Raises Refused.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _json(b"".join([chunk async for chunk in bounded(request, limits.json, limits.silence)])), True
    elif kind == "multipart/form-data":
        form = await _form(request, limits)
        try:
            yield _fields(form), False
        finally:
            await form.close()
    else:
        raise Refused(415, "content-type: send application/json or multipart/form-data", code="unsupported_media_type")


def once_of(request: Request, fields: dict[str, Any]) -> Once | None:
    """What makes a request the same as one before, where it has a key (draft-ietf-httpapi-idempotency-key-header-07).
    Raises Refused."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise bad("idempotency-key: not 1 to 255 visible characters", "idempotency-key")
    sent = json.dumps([request.url.path, fields], sort_keys=True, default=Upload.digest)
    return Once(key, hashlib.sha256(sent.encode()).hexdigest())


async def bounded(request: Request, most: int, silence: float) -> AsyncIterator[bytes]:
    """The body in pieces; raises Refused once it is longer than `most` bytes, silent for `silence` seconds, or slow."""
    too_large = Refused(413, f"the body is longer than {most} bytes", code="body_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    stream, held, began = request.stream(), 0, time.monotonic()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream, None), silence)
            if chunk and held < SLOWEST * (time.monotonic() - began - silence):
                raise TimeoutError
        except TimeoutError:
            # Not to be sent again: the SDK repeats a 408 by itself.
            headers = {"x-should-retry": "false", "connection": "close"}
            message = f"the body came too slowly: nothing for {silence:g} s, or less than {SLOWEST} bytes a second"
            raise Refused(408, message, code="body_too_slow", headers=headers) from None
        if chunk is None:
            return
        held += len(chunk)
        if held > most:
            raise too_large
        yield chunk


def _json(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise bad("the body is not valid JSON in UTF-8", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad("the body must be a JSON object", code="invalid_type")
    return body


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


class _Parser(MultiPartParser):
    """One that knows whether the form came to its end."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _form(request: Request, limits: Limits) -> FormData:
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if not boundary:
        raise bad("content-type: the form names no boundary", code="invalid_multipart")
    # As Latin-1 text every byte survives, so that it is seen below whether a field is UTF-8.
    kind = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'
    stream = cast(Any, bounded(request, limits.body, limits.silence))
    most = {"max_files": 8, "max_fields": MAX_PARTS, "max_part_size": limits.json}
    parser = _Parser(Headers({"content-type": kind}), stream, **most)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad(f"the form cannot be read: {error.message}", code="invalid_multipart") from None
    except (ValueError, UnicodeError):
        raise bad("the form cannot be read", code="invalid_multipart") from None
    if not parser.ended:
        await form.close()
        raise bad("the form breaks off before its last boundary", code="invalid_multipart")
    return form


def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        held = _text(value, name) if isinstance(value, str) else Upload(value.file)
        _place(fields, _text(name, "the name of a field"), held)
    return fields


def _text(value: str, name: str) -> str:
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        shown = name.encode("ascii", "replace").decode()[:80]
        raise bad(f"{shown} is not valid UTF-8", code="invalid_encoding") from None


def _place(fields: dict[str, Any], name: str, value: Any) -> None:
    """Puts a value where its bracketed name says."""
    match = NAME.fullmatch(name)
    path = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])] if match else []
    if not path or len(path) > MAX_DEPTH:
        raise bad(f"{name[:80]!r} is no name of a field", code="unknown_parameter")
    held: Any = fields
    for key, following in itertools.pairwise(path):
        kind: type = list if following == "" or following.isdecimal() else dict
        held = _child(held, key, following, kind, name)
    if isinstance(held, dict) and path[-1] not in held:
        held[path[-1]] = value
    elif isinstance(held, list) and path[-1] in ("", str(len(held))):
        held.append(value)
    else:
        raise bad(f"{name[:80]} is given twice, or out of order", name[:80])


def _child(held: Any, key: str, following: str, kind: type, name: str) -> Any:
    """What `key` of a dictionary or list holds, made if it is new. In `cards[][at]`, `cards[][text]`, `cards[][at]` the
    second card begins with the key that the first one has."""
    if isinstance(held, list):
        again = bool(held) and isinstance(held[-1], dict) and following not in held[-1]
        unnamed = len(held) - again
        index = unnamed if key == "" else int(key) if key.isdecimal() and len(key) < 4 else -1
        if index == len(held):
            held.append(kind())
        child = held[index] if 0 <= index < len(held) else None
    else:
        child = held.setdefault(key, kind())
    if not isinstance(child, kind):
        raise bad(f"{name[:80]} is given twice, or out of order", name[:80])
    return child
