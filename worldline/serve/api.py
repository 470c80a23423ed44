"""The HTTP side: OpenAI's Videos API and what Worldline has beside it. It accepts, shows, stops and hands out; the work
is done elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from worldline import __version__
from worldline.errors import UserError
from worldline.serve import schemas
from worldline.serve.answers import content, named, shown, told
from worldline.serve.desk import ID, Desk, rewritten
from worldline.serve.guard import Guard, Meters
from worldline.serve.keeper import Engines, Housekeeping
from worldline.serve.orders import Facts, Model
from worldline.serve.page import page
from worldline.serve.refusals import RETRY, Refused, bad, from_user_error
from worldline.serve.schemas import Create, Edit, Extend, NewCharacter, Remix, Rewrite
from worldline.serve.settings import Settings

VARIANTS = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}
POLL = "250"  # milliseconds after which a client may ask again


def sent_as(kind: type[BaseModel], forms: bool = True, typed: bool = True) -> dict[str, Any]:
    """How a body is described on the OpenAPI page."""
    schema = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    content = {
        name: schema for name, is_taken in (("application/json", typed), ("multipart/form-data", forms)) if is_taken
    }
    return {"requestBody": {"required": True, "content": content}}


REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": schemas.Error, "description": "what was wrong"}}
FILES: dict[int | str, dict[str, Any]] = {
    status: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for _, kind in VARIANTS.values()}}
    for status in (200, 206)
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
Limit = Annotated[int, Query(ge=0, le=100)]
Order_ = Literal["asc", "desc"]
Variant = Literal["video", "thumbnail", "spritesheet"]


def characters(desk: Desk) -> APIRouter:
    """/v1/videos/characters: reference clips that are stored by name."""
    router = APIRouter(prefix="/v1/videos/characters", responses=REFUSALS)

    @router.post("", response_model=schemas.Character, openapi_extra=sent_as(NewCharacter, typed=False))
    async def create_character(request: Request) -> Any:
        async with desk.read(request, NewCharacter) as asked:
            return await desk.character(request.state.owner, asked)

    @router.get("/{character_id}", response_model=schemas.Character)
    async def get_character(request: Request, character_id: str) -> Any:
        return named(await desk.known_character(request.state.owner, character_id))

    return router


def videos(desk: Desk) -> APIRouter:
    """/v1/videos: what is asked of videos. Characters come before it: their name would be taken for a video's id."""
    router = APIRouter(prefix="/v1/videos", responses=REFUSALS)

    @router.post("", response_model=schemas.Video, openapi_extra=sent_as(Create))
    async def create(request: Request) -> Any:
        async with desk.read(request, Create) as asked:
            return shown(await desk.create(request.state.owner, asked))

    @router.get("", response_model=schemas.VideoPage)
    async def list_videos(request: Request, after: str | None = None, limit: Limit = 20, order: Order_ = "desc") -> Any:
        if after is not None and not ID.fullmatch(after):
            raise bad(f"after: {after[:80]!r} is no id of a video", "after")
        found = await asyncio.to_thread(desk.jobs.page, request.state.owner, after, limit + 1, order == "desc")
        data = [shown(job) for job in found[:limit]]
        ends = {"first_id": data[0].id, "last_id": data[-1].id} if data else {"first_id": None, "last_id": None}
        return schemas.VideoPage(data=data, **ends, has_more=len(found) > limit > 0)

    @router.post("/edits", response_model=schemas.Video, openapi_extra=sent_as(Edit))
    async def edit(request: Request) -> Any:
        async with desk.read(request, Edit) as asked:
            return shown(await desk.edit(request.state.owner, asked))

    @router.post("/extensions", response_model=schemas.Video, openapi_extra=sent_as(Extend))
    async def extend(request: Request) -> Any:
        async with desk.read(request, Extend) as asked:
            return shown(await desk.extend(request.state.owner, asked))

    @router.post("/rewrites", response_model=schemas.Rewritten, openapi_extra=sent_as(Rewrite))
    async def rewrite(request: Request) -> Any:
        async with desk.read(request, Rewrite) as asked:
            return await rewritten(asked.prompt)

    @router.get("/{video_id}", response_model=schemas.Video)
    async def retrieve(request: Request, response: Response, video_id: str) -> Any:
        response.headers["openai-poll-after-ms"] = POLL
        return shown(await desk.job(request.state.owner, video_id))

    @router.delete("/{video_id}", response_model=schemas.Deleted)
    async def delete(request: Request, video_id: str) -> Any:
        job = await desk.job(request.state.owner, video_id)
        await asyncio.to_thread(desk.jobs.delete, request.state.owner, job.id)
        await asyncio.to_thread(desk.store.remove, job.id)
        return schemas.Deleted(id=job.id)

    @router.post("/{video_id}/cancel", response_model=schemas.Video)
    async def cancel(request: Request, video_id: str) -> Any:
        job = await desk.job(request.state.owner, video_id)
        if not await asyncio.to_thread(desk.jobs.cancel, request.state.owner, job.id):
            job = await desk.job(request.state.owner, video_id)
            raise bad(f"the video is {job.status}; nothing is left to cancel", "video_id", "already_ended")
        return shown(await desk.job(request.state.owner, video_id))

    @router.post("/{video_id}/remix", response_model=schemas.Video, openapi_extra=sent_as(Remix))
    async def remix(request: Request, video_id: str) -> Any:
        async with desk.read(request, Remix) as asked:
            return shown(await desk.remix(request.state.owner, video_id, asked))

    return router


def given(desk: Desk, meters: Meters) -> APIRouter:
    """/v1/videos/{video_id}: the files of a video, and what happens to it as it happens."""
    router = APIRouter(prefix="/v1/videos", responses=REFUSALS)
    listening = 0

    @router.get("/{video_id}/content", response_class=Response, responses=FILES)
    async def download(request: Request, video_id: str, variant: Variant = "video") -> Response:
        job = await desk.job(request.state.owner, video_id)
        if job.files is None:
            gone = job.status == "completed"
            message = "the video has expired" if gone else f"Video is not ready yet; it is {job.status}"
            raise Refused(404, message, "video_id", "expired" if gone else "video_not_ready")
        name, kind = VARIANTS[variant]
        try:
            key, asked = f"{job.files}/{name}", request.headers.get("range")
            return await asyncio.to_thread(content, desk.store, key, kind, asked)
        except FileNotFoundError:
            raise Refused(404, "the video was deleted", "video_id", "not_found") from None

    @router.get("/{video_id}/events", response_class=Response, responses=STREAM)
    async def events(request: Request, video_id: str) -> Response:
        nonlocal listening
        job = await desk.job(request.state.owner, video_id)
        if listening >= desk.settings.limits.listeners:
            raise Refused(429, "too many streams of events are open; poll instead", None, "too_many_streams", RETRY)

        async def stream() -> AsyncIterator[str]:
            nonlocal listening
            listening += 1
            meters.listeners.set(listening)
            try:
                async for event in told(desk.jobs, request.state.owner, job.id):
                    yield event
            finally:
                listening -= 1
                meters.listeners.set(listening)

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return router


def around(desk: Desk, meters: Meters) -> APIRouter:
    """Models, health and measures."""
    router = APIRouter(responses=REFUSALS)

    def card() -> schemas.ModelCard:
        model, limits = desk.model, desk.settings.limits
        return schemas.ModelCard(
            id=model.name, created=0, defaults={**model.defaults.as_dict(), "seconds": _length(model)},
            limits=schemas.Most(pixels=limits.pixels, seconds=limits.seconds, prompt=limits.prompt),
            shapes=[schemas.Shape(aspect=aspect, size=size) for aspect, size in model.shapes().items()],
            step=model.grid.temporal, side=model.grid.side, pictures=model.pictures, examples=model.examples(),
        )  # fmt: skip

    @router.get("/v1/models", response_model=schemas.ModelPage)
    async def list_models() -> Any:
        return schemas.ModelPage(data=[card()])

    @router.get("/v1/models/{model}", response_model=schemas.ModelCard)
    async def get_model(model: str) -> Any:
        if not desk.model.answers_to(model):
            raise Refused(404, f"model {model[:80]!r}: unknown", "model", "model_not_found")
        return card()

    @router.get("/healthz")
    async def health() -> Any:
        return {"status": "ok", "version": __version__}

    @router.get("/readyz")
    async def ready() -> Any:
        engines = await asyncio.to_thread(desk.jobs.engines)
        await asyncio.to_thread(desk.store.check)
        return {"status": "ready", "engines": len(engines)}

    @router.get("/metrics", response_class=Response, responses=TEXT)
    async def metrics() -> Response:
        counts = await asyncio.to_thread(desk.jobs.counts)
        for status in ("queued", "in_progress", "completed", "failed"):
            meters.jobs.labels(status).set(counts.get(status, 0))
        meters.engines.set(len(await asyncio.to_thread(desk.jobs.engines)))
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _length(model: Model) -> str:
    defaults = model.defaults
    return Facts(defaults.width, defaults.height, defaults.frames, defaults.fps).seconds


def create_app(settings: Settings, model: Model, engines: Engines | None = None) -> FastAPI:
    """The application. While it runs it keeps house, and keeps `engines` running."""
    desk, meters = Desk(settings, model), Meters()
    house = Housekeeping(settings, desk.jobs, desk.store)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        house.start()
        if engines is not None:
            engines.start()
        yield
        if engines is not None:
            await asyncio.to_thread(engines.stop)
        await asyncio.to_thread(house.stop)
        desk.jobs.engine.dispose()

    # The pages that FastAPI has beside openapi.json are built of scripts from elsewhere.
    app = FastAPI(
        title="Worldline", version=__version__, lifespan=life, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.include_router(characters(desk))
    app.include_router(videos(desk))
    app.include_router(given(desk, meters))
    app.include_router(around(desk, meters))
    app.include_router(page())
    _refuse(app)
    _describe(app)
    app.add_middleware(Guard, settings=settings, meters=meters)
    return app


def _refuse(app: FastAPI) -> None:
    """Every error in one shape."""

    def answer(refused: Refused) -> Response:
        return JSONResponse(refused.body, refused.status, refused.headers)

    def from_http(error: HTTPException) -> Refused:
        return Refused(error.status_code, str(error.detail), None, None, dict(error.headers or {}))

    def from_query(error: RequestValidationError) -> Refused:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return bad(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}", name)

    def from_database(error: DBAPIError) -> Refused:
        return Refused(503, "the table of jobs cannot be reached; try again", None, "unavailable", RETRY)

    def from_rest(error: Exception) -> Refused:
        return Refused(500, "the server failed; its log says why, under this request's id", None, "internal_error")

    def full(error: OSError) -> Refused:
        return Refused(503, "the server cannot write files now; try again", None, "storage_error", RETRY)

    kinds: dict[type[Exception], Callable[[Any], Refused]] = {
        Refused: lambda error: error, UserError: from_user_error, HTTPException: from_http,
        RequestValidationError: from_query, DBAPIError: from_database, OSError: full, Exception: from_rest,
    }  # fmt: skip
    for kind, turn in kinds.items():

        async def handler(request: Request, error: Exception, turn: Callable[[Any], Refused] = turn) -> Response:
            return answer(turn(error))

        app.add_exception_handler(kind, handler)


def _describe(app: FastAPI) -> None:
    """Adds the bodies, which no route declares because each comes in two forms, to the OpenAPI page."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            kinds = [(kind, "validation") for kind in (Create, Remix, Rewrite, Extend, Edit, NewCharacter)]
            _, held = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
            page = plain()
            page.setdefault("components", {}).setdefault("schemas", {}).update(held["$defs"])
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
