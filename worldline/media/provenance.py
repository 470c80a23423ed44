"""What made this file: a small dictionary that travels inside every video and picture we write, and what it was made
from. `credentials.py` signs the same.

The dictionary is stored as one JSON string under the key `worldline` (mp4: a metadata tag; PNG: a
text chunk; GIF: the comment; WebP: the EXIF image description). The prompt stands beside it in
`comment`, where ordinary players show it. Nothing that changes between two equal runs (a clock, a
host name) is stored, so equal runs give equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from worldline import __version__

KEY = "worldline"
# IPTC's word for media made by a trained model: https://cv.iptc.org/newscodes/digitalsourcetype/
SOURCE_TYPE = "trainedAlgorithmicMedia"
EXIF_DESCRIPTION = 0x010E


class Parent(NamedTuple):
    """A file that another was made from: "opened" and changed, "placed" beside the one that was opened, or the "input"
    that a model was shown."""

    file: Path
    role: Literal["opened", "placed", "input"]


def provenance(prompt: str, seed: int, model_hash: str, **settings: Any) -> dict[str, Any]:
    """The record of one generation; `settings` are JSON values such as steps or guidance_scale."""
    return {
        "generator": "worldline",
        "version": __version__,
        "digital_source_type": SOURCE_TYPE,
        "prompt": prompt,
        "seed": seed,
        "model_hash": model_hash,
        **settings,
    }


def to_tags(record: dict[str, Any]) -> dict[str, str]:
    """Container tags for a record; JSON escapes keep NUL bytes and other scripts out of C strings."""
    tags = {KEY: json.dumps(record, sort_keys=True, ensure_ascii=True, default=str)}
    if record.get("prompt"):
        tags["comment"] = "".join(c if c.isprintable() else " " for c in str(record["prompt"]))
    return tags


def from_tags(tags: dict[str, str]) -> dict[str, Any]:
    """The record in container tags; empty when there is none or when it is not ours."""
    try:
        record = json.loads(tags.get(KEY, "{}"))
    except json.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}


def read_provenance(path: str | Path) -> dict[str, Any]:
    """The record inside a video or picture, {} when it has none. Raises UserError for an unreadable file."""
    # read.py itself needs from_tags, for the exact size of a clip.
    from worldline.media.read import PICTURE_SUFFIXES, open_picture, probe

    if Path(path).suffix.lower() not in PICTURE_SUFFIXES:
        return from_tags(probe(path).metadata)
    with open_picture(path) as picture:
        info = picture.info
        text = info.get(KEY) or info.get("comment") or picture.getexif().get(EXIF_DESCRIPTION) or "{}"
    return from_tags({KEY: text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)})
