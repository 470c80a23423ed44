"""What `worldline curate` is given, as a list of files: paths, folders, globs, list files and addresses."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.errors import UserError

_SUFFIXES = "mp4 m4v mov mkv webm avi mpg mpeg ts m2ts mts flv wmv asf ogv 3gp 3g2 mxf vob divx dv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
LISTS = frozenset({".txt", ".lst"})


@dataclass(frozen=True)
class Source:
    """One file: `name` as it will stand in the manifest, its size, and what changes when its bytes do."""

    name: str
    size: int
    stamp: str


def expand(words: Iterable[str]) -> tuple[list[Source], list[str]]:
    """Files in order of their names, each once, and the files of folders that no video suffix marks.

    Raises UserError for a word that names nothing, naming it.
    """
    found: dict[str, Source] = {}
    ignored: list[str] = []
    for word in words:
        sources, others = _remote(word) if "://" in word else _local(word)
        if not sources and not others:
            raise UserError(f"SRC {word[:200]}: holds no file; give videos, folders, globs, a list (.txt) or addresses")
        found.update((source.name, source) for source in sources)
        ignored += others
    return [found[name] for name in sorted(found)], sorted(set(ignored))


def _local(word: str) -> tuple[list[Source], list[str]]:
    path = Path(word)
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        return _split(files, [_of_file(file) for file in files if _is_video(file)])
    if path.is_file() and path.suffix.lower() in LISTS:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return expand(listed)
    if path.is_file():
        return [_of_file(word)], []
    matches = [name for name in sorted(glob.glob(word, recursive=True)) if os.path.isfile(name)]
    if not matches and not glob.has_magic(word):
        raise UserError(f"SRC {word[:200]}: no such file or folder")
    return [_of_file(name) for name in matches], []


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _split(names: list[str], sources: list[Source]) -> tuple[list[Source], list[str]]:
    return sources, [name for name in names if not _is_video(name)]


def _of_file(name: str) -> Source:
    status = os.stat(name)
    return Source(name, status.st_size, str(status.st_mtime_ns))


def _remote(word: str) -> tuple[list[Source], list[str]]:
    """Files behind an address that fsspec knows (s3, gs, http, memory, zip ...)."""
    system, path = _filesystem(word)
    try:
        if any(mark in path for mark in "*?["):
            names = [name for name in system.glob(path) if system.isfile(name)]
            chosen = names
        elif system.isdir(path):
            names = system.find(path)
            chosen = [name for name in names if _is_video(name)]
        else:
            names = chosen = [path]
        sources = [_of_address(system, name) for name in sorted(chosen)]
    except (OSError, ValueError) as error:
        raise UserError(f"SRC {word[:200]}: {error or 'not found'}") from error
    return _split(names, sources) if chosen is not names else (sources, [])


def _of_address(system: Any, path: str) -> Source:
    about = system.info(path)
    marks = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created", "md5", "crc32c")
    stamp = next((str(about[mark]) for mark in marks if about.get(mark)), "")
    return Source(str(system.unstrip_protocol(path)), int(about.get("size") or 0), stamp)


def _filesystem(word: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError("addresses need the extra `data`; install it with `pip install 'worldline[data]'`") from None
    try:
        system, path = url_to_fs(word)
    except (ImportError, ValueError) as error:
        raise UserError(f"SRC {word[:200]}: {error}") from error
    return system, path


@contextmanager
def local_copy(name: str, scratch: str | None = None) -> Iterator[Path]:
    """The file itself, or for an address a copy that lasts as long as the block."""
    if "://" not in name:
        yield Path(name)
        return
    system, path = _filesystem(name)
    with tempfile.NamedTemporaryFile(dir=scratch, suffix=os.path.splitext(path)[1]) as copy:
        with system.open(path, "rb") as remote:
            shutil.copyfileobj(remote, copy, 1 << 20)
        copy.flush()
        yield Path(copy.name)
