"""The command itself, with the model that is shipped: what a client gets is what `generate` makes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from tests.serve.served import LIMIT, until
from worldline.generate import edit
from worldline.generate.load import load
from worldline.media.credentials import verify
from worldline.media.provenance import read_provenance
from worldline.media.read import read_video

PROMPT = "a red ball rolls to the right"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def command(folder: Path, port: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`worldline serve`, once it is ready."""
    words = ["-m", "worldline.cli", "serve", "--port", str(port), "--data-dir", str(folder), *more]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *words], stderr=log)
    try:
        until(lambda: ready(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield process
    finally:
        process.terminate()
        process.wait(LIMIT)


def ready(port: int) -> bool:
    try:
        return bool(httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
    except httpx2.TransportError:
        return False


def ended(client: Any, name: str) -> Any:
    """The video once it has ended; the client's own `poll` waits for ever."""
    return until(lambda: seen if (seen := client.videos.retrieve(name)).status in ("completed", "failed") else None)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    port = free_port()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of OpenAI's own service
        with openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client:
            yield client


def fetched(client: Any, name: str, folder: Path) -> Path:
    file = folder / f"{name}.mp4"
    file.write_bytes(client.videos.download_content(name).read())
    return file


def same(frames: np.ndarray, file: Path) -> bool:
    """The video of a file, but for what H.264 and another number of threads change."""
    return float(np.abs(read_video(file).frames.astype(int) - frames).mean()) < 3


def test_the_sdk_gets_what_the_model_makes(client: Any, tmp_path: Path) -> None:
    settings = {"seed": 5, "num_inference_steps": 4}
    pipeline = load()
    with command(tmp_path, client.base_url.port, "--batch", "4"):
        video = ended(client, client.videos.create(prompt=PROMPT, seconds="0.5", extra_body=settings).id)
        assert video.status == "completed", video
        file = fetched(client, video.id, tmp_path)
        told = read_provenance(file)
        assert (told["prompt"], told["seed"], told["steps"]) == (PROMPT, 5, 4)
        made = pipeline.generate(PROMPT, seconds=0.5, seed=5, steps=4)
        assert same(made.frames, file)
        longer = client.videos.extend(prompt=PROMPT, seconds="0.25", video=file.read_bytes(), extra_body=settings)
        longer = ended(client, longer.id)
        assert longer.seconds == "0.75"
        expected = edit.extend(pipeline, read_video(file), PROMPT, 0.25, seed=5, steps=4)
        file = fetched(client, longer.id, tmp_path)
        assert same(expected.frames, file)
        report = verify(file)
        assert (report.state, report.told["verb"], report.told["model"]) == ("sound", "extend", "worldline-tiny")
        assert [(parent["role"], parent["state"]) for parent in report.parents] == [("opened", "sound")]
        for variant in ("thumbnail", "spritesheet"):
            picture = tmp_path / variant
            picture.write_bytes(client.videos.download_content(longer.id, variant=variant).read())
            assert verify(picture).state == "sound"


def test_engines_end_with_a_server_that_is_killed_and_its_job_is_done_by_the_next(client: Any, tmp_path: Path) -> None:
    port = client.base_url.port
    with command(tmp_path, port) as process:
        video = client.videos.create(prompt=PROMPT, extra_body={"num_inference_steps": 40, "num_frames": 5})
        until(lambda: (seen := client.videos.retrieve(video.id)).progress or seen.status == "failed")
        engines = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(engines, timeout=30)
        assert [engine for engine in engines if engine.is_running()] == []
    with command(tmp_path, port):
        assert ended(client, video.id).status == "completed"
