"""A PostgreSQL server of its own for a test run, from the Debian package `postgresql`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"  # whom Debian's package makes; the server refuses to run as root


def programs() -> Path | None:
    """The folder of initdb and postgres, the newest where there are several; Debian keeps it off the path."""
    found = [Path(name).resolve().parent for name in [shutil.which("initdb")] if name]
    found += [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda path: path.parent.name, default=None)


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database on loopback, gone when the block ends."""
    place = programs()
    assert place is not None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not of the test: another user must reach it
    user = {"user": USER} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, USER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    data = str(folder / "data")
    words = ["-D", data, "-U", "worldline", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    subprocess.run([str(place / "initdb"), *words], check=True, **quiet)  # type: ignore[call-overload]
    options = ["-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    server = subprocess.Popen([str(place / "postgres"), *options], **quiet)  # type: ignore[call-overload]
    try:
        ready = [str(place / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        end = time.monotonic() + 120
        while subprocess.run(ready).returncode:
            assert server.poll() is None, "postgres did not start"
            assert time.monotonic() < end, "postgres did not answer"
            time.sleep(0.05)
        yield f"postgresql+psycopg://worldline@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(120)
        shutil.rmtree(folder, ignore_errors=True)
