"""Looks at one uploaded file in a process of its own, which may crash, hang or swell without harm to the server.

`python -m worldline.serve.inspect picture|clip FILE OUT MAX_PIXELS MAX_SECONDS` prints one JSON object: what the file
holds, or `error`. A picture is written anew to OUT, so that nothing of the bytes that were sent is kept.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

from worldline.errors import UserError

MEMORY = 4 << 30  # bytes of address space
CPU = 30  # seconds
PICTURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WebP": b"RIFF"}
CLIPS = ("mp4, mov", "webm, mkv", "avi")


def kind_of(head: bytes) -> str | None:
    """ "picture" or "clip" by the first bytes of a file; its name and declared type are not to be trusted."""
    if head[:4] == b"RIFF":
        return {b"WEBP": "picture", b"AVI ": "clip"}.get(head[8:12])
    if head.startswith((PICTURES["PNG"], PICTURES["JPEG"])):
        return "picture"
    return "clip" if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3" else None


def inspect(kind: str, file: Path, out: Path, max_pixels: int, max_seconds: float) -> dict[str, Any]:
    """width, height, and of a clip frames and fps. Raises UserError for anything that is not what it should be."""
    with file.open("rb") as stream:
        found = kind_of(stream.read(16))
    if kind == "picture":
        if found != "picture":
            raise UserError("is not a picture; send a PNG, JPEG or WebP file")
        return _picture(file, out, max_pixels)
    if found != "clip":
        raise UserError(f"is not a clip; send one of {', '.join(CLIPS)}")
    return _clip(file, max_pixels, max_seconds)


def _picture(file: Path, out: Path, max_pixels: int) -> dict[str, Any]:
    from worldline.media.read import read_image
    from worldline.media.write import write_image

    pixels = read_image(file, max_pixels)
    write_image(out, pixels)
    return {"width": pixels.shape[1], "height": pixels.shape[0]}


def _clip(file: Path, max_pixels: int, max_seconds: float) -> dict[str, Any]:
    from worldline.media.read import probe

    info = probe(file, max_pixels)
    seconds = info.seconds if info.seconds is not None else (info.frames or 1) / float(info.fps)
    if not math.isfinite(seconds) or seconds > max_seconds:
        raise UserError(f"lasts {seconds:g} s; at most {max_seconds:g} s are taken")
    frames = max(1, round(seconds * info.fps))
    return {"width": info.width, "height": info.height, "frames": frames, "fps": str(info.fps)}


def main(argv: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
    kind, file, out, max_pixels, max_seconds = argv
    try:
        found = inspect(kind, Path(file), Path(out), int(max_pixels), float(max_seconds))
    except UserError as error:
        found = {"error": str(error).removeprefix(f"{file}: ")}
    except MemoryError:
        found = {"error": "takes too much memory to read"}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
