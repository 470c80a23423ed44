"""Studio, the page at `/`: files of the package, which ask the public API for everything that they show."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from worldline.serve.refusals import Refused

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing is loaded from elsewhere, nothing that stands in the page is run, no text becomes markup. Videos and pictures
# come as blobs, since a tag cannot send a key; previews come as data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "cache-control": "no-cache",  # kept, and asked about each time
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


def page() -> APIRouter:
    """`/` and what it loads. The files are read once: a name is looked up among theirs and never becomes a path."""
    router = APIRouter(include_in_schema=False)
    held = {
        file.name: (file.read_bytes(), kind)
        for file in (files("worldline.serve") / "studio").iterdir()
        if (kind := KINDS.get("." + file.name.rpartition(".")[2]))
    }
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, (data, _) in held.items()}

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return await file(request, "index.html")

    @router.api_route("/studio/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        if name not in held:
            raise Refused(404, "no such file", None, "not_found")
        headers = {**HEADERS, "etag": tags[name]}
        if tags[name] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        data, kind = held[name]
        return Response(data, headers=headers, media_type=kind)

    return router
