"""Stands before every request: who asks, under which id, how often, and what of it is written to the log."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldline.serve.refusals import Refused
from worldline.serve.settings import Settings

GUARDED = ("/v1", "/metrics")  # what is not below them is open to anyone
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
log = logging.getLogger("worldline.api")


class Meters:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        words = ["method", "route", "status"]
        self.requests = Counter("worldline_requests", "Requests answered", words, registry=self.registry)
        self.seconds = Histogram(
            "worldline_request_seconds",
            "Time to the head of the answer",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.jobs = Gauge("worldline_jobs", "Jobs in each state", ["status"], registry=self.registry)
        self.engines = Gauge("worldline_engines", "Engines seen of late", registry=self.registry)
        self.listeners = Gauge("worldline_event_streams", "Open streams of events", registry=self.registry)


class Guard:
    """ASGI middleware. A request is refused before anything of it is read where its key is unknown."""

    def __init__(self, app: ASGIApp, settings: Settings, meters: Meters) -> None:
        self.app, self.settings, self.meters = app, settings, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        started, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = name
                out.setdefault("cache-control", "no-store")
                out["x-content-type-options"] = "nosniff"
                self._count(scope, status, time.perf_counter() - started)
            await send(message)

        refusal = self._refusal(scope, headers)
        try:
            if refusal is None:
                await self.app(scope, receive, answer)
            else:
                response = JSONResponse(refusal.body, refusal.status, refusal.headers)
                await response(scope, receive, answer)
        finally:
            log.info(
                "answered",
                extra={
                    "request": name,
                    "method": scope["method"],
                    "route": route_of(scope),
                    "status": status,
                    "ms": round(1000 * (time.perf_counter() - started), 1),
                    "owner": scope.get("state", {}).get("owner"),
                },
            )

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = method_of(scope), route_of(scope)
        self.meters.requests.labels(method, route, str(status)).inc()
        self.meters.seconds.labels(method, route).observe(seconds)

    def _refusal(self, scope: Scope, headers: Headers) -> Refused | None:
        guarded = scope["path"].startswith(GUARDED)
        owner = self.settings.owner(headers.get("authorization")) if guarded else "anyone"
        if owner is None:
            challenge = {"www-authenticate": "Bearer"}
            return Refused(401, "no valid API key: send Authorization: Bearer KEY", None, "invalid_api_key", challenge)
        if guarded and not self.settings.keys and (refusal := foreign(headers, self.settings.hosts)):
            return refusal
        scope.setdefault("state", {})["owner"] = owner
        return None


def foreign(headers: Headers, hosts: Iterable[str]) -> Refused | None:
    """Where there are no keys a web page must not use the server behind its reader's back: neither by sending a form
    across sites, nor by a name of its own that it points here."""
    host = headers.get("host", "").lower()
    if host.rpartition(":")[0] not in hosts and host not in hosts:
        return Refused(403, "host: not a name of this server; start it with keys, or with --allow-host", code="host")
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host:
        return Refused(403, "origin: another site; start the server with keys to allow it", code="origin")
    return None


def method_of(scope: Scope) -> str:
    """One of few words, whatever was sent."""
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"


def route_of(scope: Scope) -> str:
    """The pattern that a path matched: no id, no key and nothing a client made up gets into logs and metrics."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


# ---- logs ----------------------------------------------------------------------------------------

USUAL = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower()}
        line |= {"from": record.name, "event": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in USUAL}
        if record.exc_info and record.exc_info[1] is not None:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Structured lines on stderr of everything below `worldline`, and of what uvicorn has to complain about."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, least in (("worldline", level), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
