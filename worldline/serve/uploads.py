"""Pictures and clips that clients send: fetched, looked at under limits, and only then believed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import sys
from pathlib import Path
from typing import Any

from worldline.serve.bodies import Upload
from worldline.serve.refusals import Refused, bad
from worldline.serve.schemas import Picture
from worldline.serve.settings import DATABASE, KEYS, Settings

AT_ONCE = 2  # files that are looked at at the same time
PATIENCE = 60.0  # seconds for one of them


class Uploads:
    """Files on their way into the store."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = asyncio.Semaphore(AT_ONCE)

    async def picture(self, given: Upload | Picture, folder: Path, param: str) -> tuple[Path, dict[str, Any]]:
        """A PNG in `folder` with what was sent or named, and its width and height. Raises Refused."""
        upload = given if isinstance(given, Upload) else await self._named(given, param)
        raw, out = folder / f"{param}.sent", folder / f"{param}.png"
        await asyncio.to_thread(upload.save, raw)
        return out, await self._inspected("picture", raw, out, param)

    async def clip(self, given: Upload, folder: Path, param: str) -> tuple[Path, dict[str, Any]]:
        """A file in `folder` with what was sent, and its width, height, frames and fps. Raises Refused."""
        raw = folder / f"{param}.sent"
        await asyncio.to_thread(given.save, raw)
        return raw, await self._inspected("clip", raw, raw, param)

    async def _named(self, given: Picture, param: str) -> Upload:
        if (given.image_url is None) == (given.file_id is None):
            raise bad(f"{param}: give exactly one of image_url and file_id", param)
        if given.image_url is None:
            raise bad(f"{param}.file_id: this server keeps no files; send the picture itself", f"{param}.file_id")
        if not given.image_url.startswith("data:"):
            return await self._fetched(given.image_url, param)
        head, comma, data = given.image_url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise bad(f"{param}.image_url: not a base64 data URL", param)
        try:
            return Upload.of(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            raise bad(f"{param}.image_url: not valid base64", param) from None

    async def _fetched(self, url: str, param: str) -> Upload:
        if not self.settings.fetch_urls:
            raise bad(f"{param}.image_url: this server fetches nothing; send the picture, or a data URL", param)
        from worldline.serve.fetch import fetch

        return Upload.of(await asyncio.to_thread(fetch, url, self.settings.limits.json))

    async def _inspected(self, kind: str, raw: Path, out: Path, param: str) -> dict[str, Any]:
        limits = self.settings.limits
        words = [kind, str(raw), str(out), str(limits.upload_pixels), str(limits.upload_seconds)]
        async with self.places:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worldline.serve.inspect", *words,
                env={key: value for key, value in os.environ.items() if key not in (KEYS, DATABASE)},
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
            except TimeoutError:
                said = b""
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        try:
            found: dict[str, Any] = json.loads(said)
        except ValueError:  # it crashed, or was stopped at a limit
            raise bad(f"{param}: the file cannot be read", param, "unreadable_file") from None
        if "error" in found:
            raise Refused(400, f"{param}: {found['error']}", param, "unreadable_file")
        return found
