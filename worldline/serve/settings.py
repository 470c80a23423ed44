"""What a server is told when it starts: where its data lie, which model it serves, whom it knows, what it refuses."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from worldline.errors import UserError

KEYS = "WORLDLINE_API_KEYS"  # of the environment: keys with commas or white space between them
DATABASE = "WORLDLINE_DATABASE_URL"  # of the environment, where it does not show in the list of processes
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MIN_KEY = 8  # characters
MB = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What is refused before anything is allocated for it."""

    body: int = 256 * MB  # bytes of a multipart body
    json: int = 32 * MB  # bytes of a JSON body; a picture as a data URL has up to 21 MB
    silence: float = 20.0  # seconds without a byte of a body
    prompt: int = 32_000  # characters
    pixels: int = 2048 * 2048  # of a frame that is asked for
    seconds: float = 120.0  # of a video that is asked for
    upload_pixels: int = 4096 * 4096  # of a frame that is sent
    upload_seconds: float = 120.0  # of a clip that is sent
    upload_bytes: int = 2_000 * MB  # of a clip, decoded
    queue: int = 1000  # jobs that wait or are in work
    listeners: int = 100  # open streams of events


@dataclass(frozen=True)
class Settings:
    """Of an API process. `keys`: SHA-256 of each API key; none: anyone who reaches the port is let in."""

    data_dir: Path
    database_url: str
    store_url: str
    keys: Sequence[bytes] = ()
    limits: Limits = field(default_factory=Limits)
    hosts: Sequence[str] = LOOPBACK  # names by which a server without keys may be called
    fetch_urls: bool = False
    moderation: str | None = None

    @property
    def scratch(self) -> Path:
        """Where files lie for a moment."""
        return self.data_dir / "scratch"

    def owner(self, authorization: str | None) -> str | None:
        """Who sent an Authorization header, as a name that tells nothing of the key; None for a stranger."""
        if not self.keys:
            return "anyone"
        scheme, _, key = (authorization or "").partition(" ")
        # ASGI gives headers as Latin-1, so that any bytes have a digest.
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        # Every key is compared, in a time that depends on neither.
        matches = [hmac.compare_digest(digest, known) for known in self.keys]
        if scheme.lower() != "bearer" or not any(matches):
            return None
        return hashlib.sha256(b"owner:" + digest).hexdigest()[:16]


def settings_of(
    data_dir: str | Path,
    database_url: str | None = None,
    store_url: str | None = None,
    keys: str | Path | None = None,
    **more: object,
) -> Settings:
    """Settings whose folders exist; `keys` is a file beside what the environment names. Raises UserError."""
    folder = Path(data_dir).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what people asked for is theirs
        (folder / "scratch").mkdir(exist_ok=True)
        (folder / "engines").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--data-dir {folder}: cannot be made ({error.strerror}); choose another folder") from None
    database = database_url or os.environ.get(DATABASE) or f"sqlite:///{folder / 'jobs.sqlite'}"
    return Settings(folder, driver_named(database), store_url or str(folder / "store"), read_keys(keys), **more)  # type: ignore[arg-type]


def driver_named(url: str) -> str:
    """A database URL with the driver that the extra installs; raises UserError for what is no such URL."""
    if url.startswith("sqlite:///"):
        return url
    match = re.match(r"postgres(?:ql)?(?:\+psycopg)?://", url)
    if match is None:
        raise UserError("--database-url: not one of sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME")
    return "postgresql+psycopg://" + url[match.end() :]


def read_keys(file: str | Path | None) -> list[bytes]:
    """Digests of the API keys in the environment and in a file, one a line, `#` for comments; raises UserError."""
    words = re.split(r"[,\s]+", os.environ.get(KEYS, ""))
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-keys {file}: cannot be read ({type(error).__name__})") from None
        words += [line.partition("#")[0].strip() for line in lines]
    words = [word for word in words if word]
    if any(len(word) < MIN_KEY for word in words):
        raise UserError(f"{KEYS}: a key has fewer than {MIN_KEY} characters; `openssl rand -hex 24` makes a good one")
    if file is not None and not words:
        raise UserError(f"--api-keys {file}: holds no key; write one a line")
    return [hashlib.sha256(word.encode()).digest() for word in words]
