"""Where files lie: a folder, or any place that fsspec reaches. A key is `ID/...`, and one job never sees another's.

A file is put under a name of its own and the table of jobs names it only afterwards, so that nobody is served part of
one; in a folder it also appears there whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

from worldline.errors import UserError
from worldline.media.write import sync


class Store:
    """The files of a server. Keys are made by the server alone, never from what a client sent."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a URL whose kind is not known, or whose package is not installed."""
        from fsspec.core import url_to_fs

        try:
            self.fs, self.root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"--store {url[:80]}: {error}") from None
        self.folder = Path(self.root) if "file" in _protocols(self.fs) else None

    def put(self, file: Path, key: str) -> None:
        """Takes a copy of a file."""
        if self.folder is None:
            self.fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)
            return self.fs.put_file(str(file), self._path(key))
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            shutil.copyfile(file, part)
            sync(part)
            os.replace(part, target)
            sync(target.parent)
        finally:
            part.unlink(missing_ok=True)

    def fetch(self, key: str, file: Path) -> None:
        """Writes a copy of what lies under a key; raises FileNotFoundError."""
        self.fs.get_file(self._path(key), str(file))

    def copy(self, key: str, other: str) -> None:
        """A second name for the same content; raises FileNotFoundError."""
        if self.folder is None:
            return self.fs.cp_file(self._path(key), self._path(other))
        self.put(self.folder / key, other)

    def size(self, key: str) -> int:
        """In bytes; raises FileNotFoundError."""
        return int(self.fs.size(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        """What lies under a key, to be read; raises FileNotFoundError."""
        return cast(BinaryIO, self.fs.open(self._path(key), "rb"))

    def remove(self, folder: str) -> None:
        """Everything under a folder, which need not exist."""
        self.fs.invalidate_cache()  # others put files here too
        if self.fs.exists(self._path(folder)):
            self.fs.rm(self._path(folder), recursive=True)

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder, or the ids that something lies under."""
        place = self._path(folder).rstrip("/")
        self.fs.invalidate_cache()
        if not self.fs.exists(place):
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(place, detail=False)]

    def check(self) -> None:
        """Raises OSError where nothing can be written."""
        self.fs.makedirs(self.root, exist_ok=True)

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
