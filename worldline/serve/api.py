"""The HTTP side: OpenAI's Videos API and what Worldline has beside it. It accepts, shows, stops and hands out; the work
is done elsewhere."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar, cast

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from worldline import __version__
from worldline.errors import UserError
from worldline.generate.request import MAX_PROMPT, check_prompt, check_text
from worldline.serve import schemas
from worldline.serve.bodies import Upload, once_of, opened
from worldline.serve.guard import Guard, Meters
from worldline.serve.jobs import Job, Jobs, Once, Reused, new_id
from worldline.serve.keeper import Engines, Housekeeping
from worldline.serve.moderation import moderator, verdict
from worldline.serve.orders import Facts, Model, Order
from worldline.serve.page import page
from worldline.serve.refusals import Refused, bad, from_user_error, from_validation
from worldline.serve.schemas import Clip, Create, Edit, Extend, NewCharacter, Remix, Rewrite
from worldline.serve.settings import Settings
from worldline.serve.store import Store
from worldline.serve.uploads import Uploads

ID = re.compile(r"(video|char)_[0-9a-f]{32}")  # nothing else is looked up
VARIANTS = {
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}
POLL = "250"  # milliseconds after which a client may ask again
LOOK = 0.2  # seconds between two looks at a job whose events are read
SIGN_OF_LIFE = 15.0  # seconds after which a stream of events says that it is still there
RETRY = {"retry-after": "5"}
CHUNK = 1 << 16  # bytes that are sent at once
B = TypeVar("B", bound=BaseModel)
ONCE: ContextVar[Once | None] = ContextVar("once", default=None)  # of the request that is being answered
Places = dict[str, Path | str]
"""Names of an order's inputs, and where each is now: a file, or a key of the store."""


class Desk:
    """Takes orders: reads what was sent, checks it whole, keeps its files, and only then accepts."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings, self.model = settings, model
        self.jobs, self.store = Jobs(settings.database_url), Store(settings.store_url)
        self.store.check()
        self.uploads, self.moderator = Uploads(settings), moderator(settings.moderation)

    @asynccontextmanager
    async def read(self, request: Request, kind: type[B]) -> AsyncIterator[B]:
        """A body as `kind`, whose files are open meanwhile; raises Refused."""
        async with opened(request, self.settings.limits) as (fields, typed):
            ONCE.set(await asyncio.to_thread(once_of, request, fields))
            try:
                asked = kind.model_validate(fields, strict=typed)
            except ValidationError as error:
                raise from_validation(error) from None
            _check_texts(asked)
            yield asked

    async def judge(self, text: str) -> None:
        """Raises Refused for a prompt that the moderator refuses."""
        reason = await asyncio.to_thread(verdict, lambda: self.moderator.prompt(text))
        if reason is not None:
            raise bad(f"prompt: {reason}", "prompt", "moderation_blocked")

    async def job(self, owner: str, name: str) -> Job:
        job = await asyncio.to_thread(self.jobs.get, owner, name) if ID.fullmatch(name) else None
        if job is None:
            raise Refused(404, f"no video with the id {name[:80]!r}", "video_id", "not_found")
        return job

    async def known_character(self, owner: str, name: str) -> dict[str, Any]:
        row = await asyncio.to_thread(self.jobs.character, owner, name) if ID.fullmatch(name) else None
        if row is None:
            raise Refused(404, f"no character with the id {name[:80]!r}", "character_id", "not_found")
        return row

    async def create(self, owner: str, asked: Create) -> Job:
        called = asked.model or self.model.name
        if not self.model.answers_to(called):
            raise bad(f"model {called[:80]!r}: unknown; the nearest is {self.model.name}", "model", "model_not_found")
        with self._folder() as folder:
            given = {"input_reference": asked.input_reference, "last_reference": asked.last_reference}
            for number, card in enumerate(asked.storyboard or []):
                given[f"card-{number}"] = card.image
                await self.judge(card.text)
            shown = {name: picture for name, picture in given.items() if picture is not None}
            told = await rewritten(asked.prompt) if asked.rewrite else None
            order = self.model.create(
                asked if told is None else asked.model_copy(update={"prompt": told.prompt}), set(shown)
            )
            if told is not None and told.prompt != asked.prompt:
                order = replace(order, settings={**order.settings, "rewritten_from": asked.prompt})
            files = {name: (await self.uploads.picture(shown[name], folder, name))[0] for name in shown}
            places: Places = {f"{name}.png": file for name, file in files.items()}
            return await self._accept(owner, order, places, called=called, seconds=asked.seconds or order.facts.seconds)

    async def remix(self, owner: str, name: str, asked: Remix) -> Job:
        facts, source = await self._source(owner, Clip(id=name), Path(), "video_id")
        order = self.model.remix(asked, facts, asked.strength)
        return await self._accept(owner, order, {"video.sent": source}, source=name)

    async def extend(self, owner: str, asked: Extend) -> Job:
        with self._folder() as folder:
            facts, source = await self._source(owner, asked.video, folder, "video")
            order = self.model.extend(asked, facts, float(asked.seconds), asked.backward)
            return await self._accept(owner, order, {"video.sent": source})

    async def edit(self, owner: str, asked: Edit) -> Job:
        with self._folder() as folder:
            facts, source = await self._source(owner, asked.video, folder, "video")
            files: Places = {"video.sent": source}
            second = None
            if asked.second is not None:
                second, files["second.sent"] = await self._source(owner, asked.second, folder, "second")
            pictures = set() if asked.mask is None else {"mask"}
            order = self.model.edit(asked, facts, second, pictures)
            if asked.mask is not None:
                files["mask.png"], mask = await self.uploads.picture(asked.mask, folder, "mask")
                if (mask["width"], mask["height"]) != (facts.width, facts.height):
                    raise bad(f"mask: the nearest valid size is {facts.width}x{facts.height}", "mask")
            return await self._accept(owner, order, files)

    async def character(self, owner: str, asked: NewCharacter) -> schemas.Character:
        name = new_id("char")
        with self._folder() as folder:
            clip, facts = await self.uploads.clip(asked.video, folder, "video")
            await asyncio.to_thread(self.store.put, clip, f"{name}/video.mp4")
        row = {"id": name, "owner": owner, "name": asked.name, "created_at": time.time(), "facts": facts}
        await asyncio.to_thread(self.jobs.add_character, row)
        return named(row)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A place for what one request brings."""
        with tempfile.TemporaryDirectory(prefix="request-", dir=self.settings.scratch) as folder:
            yield Path(folder)

    async def _source(self, owner: str, given: Upload | Clip, folder: Path, param: str) -> tuple[Facts, Path | str]:
        """The measures of a clip that was sent or named, and where it is: a file, or a key of the store."""
        if isinstance(given, Upload):
            file, held = await self.uploads.clip(given, folder, param)
            return Facts.of(held), file
        if given.id.startswith("char_"):
            character = await self.known_character(owner, given.id)
            return Facts.of(character["facts"]), f"{given.id}/video.mp4"
        job = await self.job(owner, given.id)
        if job.status != "completed" or job.facts is None:
            raise bad(f"{param}: the video is not completed; it is {job.status}", param, "video_not_ready")
        if job.files is None:
            raise Refused(404, f"{param}: the video has expired", param, "expired")
        return Facts.of(job.facts), f"{job.files}/video.mp4"

    async def _accept(self, owner: str, order: Order, files: Places, **more: Any) -> Job:
        """The job, once it and all that it needs are kept; raises Refused where too many wait."""
        await self.judge(order.prompt)
        name, facts = new_id("video"), order.facts
        row = {"called": self.model.name, "size": f"{facts.width}x{facts.height}", "seconds": facts.seconds, **more}
        row["parents"] = [place.split("/")[0] for place in files.values() if isinstance(place, str)]
        work = replace(order, inputs=tuple(files)).as_dict()
        job = Job(
            name, owner, self.model.name, prompt=order.prompt, work=work, created_at=time.time(), kin=order.kin, **row
        )
        accepted: str | None = None
        try:
            await asyncio.to_thread(self._keep, name, files)
            accepted = await asyncio.to_thread(self.jobs.add, job, self.settings.limits.queue, ONCE.get())
        except FileNotFoundError:
            raise Refused(404, "the video was deleted meanwhile", "video", "not_found") from None
        except Reused:
            message = "idempotency-key: stands for another request; take a new one"
            raise Refused(422, message, "idempotency-key", "idempotency_key_reused") from None
        finally:
            if accepted != name and files:
                await asyncio.to_thread(self.store.remove, name)
        if accepted is None:
            message = f"{self.settings.limits.queue} videos wait already; try again later"
            raise Refused(429, message, None, "queue_full", RETRY)
        return job if accepted == name else await self.job(owner, accepted)

    def _keep(self, name: str, files: Places) -> None:
        for file, place in files.items():
            if isinstance(place, Path):
                self.store.put(place, f"{name}/inputs/{file}")
            else:
                self.store.copy(place, f"{name}/inputs/{file}")


async def rewritten(prompt: str) -> schemas.Rewritten:
    """A prompt as a caption of the kind that the shipped model was trained on."""

    def write() -> schemas.Rewritten:
        from worldline.caption.rewrite import rewrite  # scipy, which nothing else needs here

        check_prompt(prompt)
        made = rewrite(prompt)
        return schemas.Rewritten(prompt=made.text, rewritten_from=prompt, note=made.note)

    return await asyncio.to_thread(write)


def _check_texts(asked: BaseModel) -> None:
    """Raises Refused for texts that no prompt can be."""
    texts = {name: getattr(asked, name, None) for name in ("prompt", "name", "negative_prompt")}
    texts |= {"storyboard": "".join(card.text for card in getattr(asked, "storyboard", None) or [])[:MAX_PROMPT]}
    for name, text in texts.items():
        try:
            check_text(name, text or "")
        except UserError as error:
            raise from_user_error(error, name) from None


# ---- what is answered --------------------------------------------------------------------------


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


async def told(desk: Desk, owner: str, name: str) -> AsyncIterator[str]:
    """Server-sent events of one job (https://html.spec.whatwg.org/multipage/server-sent-events.html): `progress` with
    the video, and its `preview` where that is new, then `completed`, `failed` or `deleted`."""
    before: dict[str, Any] | None = None
    preview, quiet = None, 0.0
    while True:
        job = await asyncio.to_thread(desk.jobs.get, owner, name)
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


# ---- routes --------------------------------------------------------------------------------------


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


def videos(desk: Desk, meters: Meters) -> APIRouter:
    """/v1/videos and all below it but characters, which come first: their name would be taken for a video's id."""
    router = APIRouter(prefix="/v1/videos", responses=REFUSALS)
    listening = 0

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
                async for event in told(desk, request.state.owner, job.id):
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
    app.include_router(videos(desk, meters))
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
