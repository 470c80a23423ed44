"""OpenAI's own client against the server: the last that sends JSON, and the newest, which sends forms."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve.served import serving
from worldline.media.write import write_image, write_video

OLDER = Path(sys.prefix) / "openai-2"  # where the Makefile puts it
KEYS = {"id", "object", "model", "status", "progress", "created_at", "completed_at", "expires_at", "size", "seconds",
        "prompt", "remixed_from_video_id", "error"}  # fmt: skip
RAISED = {
    "gone": ["NotFoundError", 404, "video_id", True],
    "gone_content": ["NotFoundError", 404, "video_id", True],
    "empty": ["BadRequestError", 400, "prompt", True],
    "size": ["BadRequestError", 400, "size", True],
    "seconds": ["BadRequestError", 400, "seconds", True],
    "model": ["BadRequestError", 400, "model", True],
    "picture": ["BadRequestError", 400, "input_reference", True],
    "hostile": ["NotFoundError", 404, None, True],
    "key": ["AuthenticationError", 401, None, True],
}


def asked(version: str, tmp_path: Path) -> dict[str, Any]:
    picture, clip = tmp_path / "first.png", tmp_path / "clip.mp4"
    write_image(picture, np.full((50, 70, 3), 90, np.uint8))
    write_video(clip, np.full((9, 32, 48, 3), 90, np.uint8), 8)
    path = {"2": str(OLDER), "3": ""}[version]
    with serving(tmp_path, keys="a-key-of-the-test another-key") as server:
        words = [server.url, "a-key-of-the-test", str(picture), str(clip)]
        script = str(Path(__file__).with_name("sdk_client.py"))
        env = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("version", ["2", "3"])
def test_the_client_gets_what_it_expects(version: str, tmp_path: Path) -> None:
    if version == "2" and not OLDER.exists():
        pytest.skip(f"no openai 2 in {OLDER}; `make test` puts it there")
    if version == "3" and importlib.util.find_spec("openai") is None:
        pytest.skip("openai is not installed")
    said = asked(version, tmp_path)
    assert said["version"].startswith(version)
    video = said["video"]
    assert video.keys() - {"worldline"} == KEYS
    assert (video["status"], video["progress"], video["model"]) == ("completed", 100, "sora-2")
    assert (video["size"], video["seconds"], video["error"]) == ("64x48", "1", None)
    assert video["created_at"] <= video["completed_at"]
    assert bytes.fromhex(said["files"]["video"])[4:8] == b"ftyp"
    assert bytes.fromhex(said["files"]["thumbnail"])[8:12] == b"WEBP"
    assert bytes.fromhex(said["files"]["spritesheet"])[:3] == b"\xff\xd8\xff"
    assert said["shown"]["worldline"]["edit"] == "animate"
    assert (said["tuned"]["worldline"]["seed"], said["tuned"]["worldline"]["frames"]) == (7, 9)
    assert said["tuned"]["seconds"] == "0.5"
    assert said["remix"]["remixed_from_video_id"] == video["id"]
    made = [said[name]["id"] for name in ("video", "shown", "tuned", "remix")]
    if version == "3":
        assert (said["edit"]["size"], said["edit"]["worldline"]["frames"]) == ("48x32", 9)
        assert (said["extend"]["seconds"], said["extend"]["worldline"]["made_from"]) == ("3", [video["id"]])
        assert said["character"][0] == said["character"][1]
        assert said["character"][0].keys() == {"id", "name", "created_at"}
        made += [said["edit"]["id"], said["extend"]["id"]]
    assert said["pages"] == made[::-1]  # every one once, the newest first
    assert said["first"]["data"][0]["id"] == said["first"]["last_id"] == video["id"]
    assert said["first"]["has_more"] is True
    assert said["deleted"] == {"id": video["id"], "object": "video.deleted", "deleted": True}
    assert said["errors"] == RAISED
