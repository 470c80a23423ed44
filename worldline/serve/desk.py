"""Takes orders: what was sent is read, checked whole and kept, and only then accepted."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from worldline.errors import UserError
from worldline.generate.request import MAX_PROMPT, check_prompt, check_text
from worldline.serve.answers import named
from worldline.serve.bodies import Upload, once_of, opened
from worldline.serve.jobs import Job, Jobs, Once, Reused, new_id
from worldline.serve.moderation import moderator, verdict
from worldline.serve.orders import Facts, Model, Order
from worldline.serve.refusals import RETRY, Refused, bad, from_user_error, from_validation
from worldline.serve.schemas import Character, Clip, Create, Edit, Extend, NewCharacter, Remix, Rewritten
from worldline.serve.settings import Settings
from worldline.serve.store import Store
from worldline.serve.uploads import Uploads

ID = re.compile(r"(video|char)_[0-9a-f]{32}")  # nothing else is looked up
B = TypeVar("B", bound=BaseModel)
ONCE: ContextVar[Once | None] = ContextVar("once", default=None)  # of the request that is being answered
Places = dict[str, Path | str]
"""Names of an order's inputs, and where each is now: a file, or a key of the store."""


class Desk:
    """What routes hand requests to, with the table of jobs, the store of files, the moderator, and the model."""

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

    async def character(self, owner: str, asked: NewCharacter) -> Character:
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


async def rewritten(prompt: str) -> Rewritten:
    """A prompt as a caption of the kind that the shipped model was trained on."""

    def write() -> Rewritten:
        from worldline.caption.rewrite import rewrite  # scipy, which nothing else needs here

        check_prompt(prompt)
        made = rewrite(prompt)
        return Rewritten(prompt=made.text, rewritten_from=prompt, note=made.note)

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
