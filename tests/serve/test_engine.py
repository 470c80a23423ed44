"""The engine: what it packs, how it fails, and that nothing that goes wrong ends it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.serve.fake import Fake
from tests.serve.served import LIMIT, Served, serving, until
from worldline.cli import main
from worldline.errors import UserError
from worldline.serve.engine import Engine, Watch, named
from worldline.serve.files import LATENTS, Done
from worldline.serve.guard import Lines
from worldline.serve.keeper import Engines
from worldline.serve.moderation import moderator, verdict
from worldline.serve.orders import Model, Order
from worldline.serve.settings import read_keys, settings_of
from worldline.serve.store import Store


def test_jobs_of_one_kind_are_packed_and_others_are_not(tmp_path: Path) -> None:
    with serving(tmp_path, batch=3) as server:
        server.worker.gate.clear()
        first = server.create()["id"]
        server.working()
        names = [server.create(seed=seed, prompt=f"prompt {seed}")["id"] for seed in range(4)]
        other = server.create(size="32x32")["id"]
        cancelled = names.pop(1)
        server.worker.waiting.clear()
        server.worker.gate.set()
        server.wait(first)
        server.client.post(f"/v1/videos/{cancelled}/cancel")
        assert {server.wait(name)["status"] for name in [*names, other]} == {"completed"}
        assert server.wait(cancelled)["status"] in ("failed", "completed")
        assert server.worker.packed[0] == 3
        assert server.client.get(f"/v1/videos/{names[0]}/content").content[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("--size 9x9: no"), "invalid_request", "size 9x9: no"),
        (MemoryError(), "out_of_memory", "smaller size"),
        (RuntimeError("CUDA out of memory"), "out_of_memory", "smaller size"),
        (OSError(28, "No space left on device"), "storage_error", "No space left"),
        (UserError("output: cannot be signed with /etc/secret.pem"), "signing_error", "could not sign"),
        (ValueError("at /home/someone/secret.py"), "engine_error", "ValueError"),
    ],
)
def test_a_job_fails_with_a_reason_and_the_next_does_not(
    server: Served, error: Exception, code: str, says: str
) -> None:
    server.worker.error = error
    try:
        failed = server.wait(server.create()["id"])
    finally:
        server.worker.error = None
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)
    assert says in failed["error"]["message"]
    assert "secret" not in failed["error"]["message"]
    server.finished()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_the_job_and_not_the_server(small_disk: Path, tmp_path: Path) -> None:
    # The table stands elsewhere, as one of PostgreSQL does.
    with serving(small_disk, database_url=f"sqlite:///{tmp_path / 'jobs.sqlite'}") as server:
        server.worker.noise = True
        failed = server.wait(server.create(size="256x256", num_frames=33)["id"])
        assert (failed["status"], failed["error"]["code"]) == ("failed", "storage_full")
        assert server.client.get(f"/v1/videos/{failed['id']}/content").status_code == 404
        assert server.store.names() == []
        server.worker.noise = False
        video = server.finished()
        assert server.client.get(f"/v1/videos/{video['id']}/content").content[4:8] == b"ftyp"


# ---- moderation ----------------------------------------------------------------------------------


class Careful:
    """Refuses a word, and bright frames."""

    def prompt(self, text: str) -> str | None:
        if "break" in text:
            raise RuntimeError("out of order")
        return "no weapons" if "weapon" in text else None

    def frames(self, frames: np.ndarray) -> str | None:
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (64, 64, 3)
        return "too bright" if frames.mean() > 100 else None


def test_a_moderator_judges_prompts_and_frames(tmp_path: Path) -> None:
    with serving(tmp_path, moderation="tests.serve.test_engine:Careful") as server:
        for body in ({"prompt": "a weapon"}, {"prompt": "a", "storyboard": [{"at": 0, "text": "a weapon"}]}):
            answer = server.client.post("/v1/videos", json=body)
            assert answer.status_code == 400
            assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("moderation_blocked", "prompt")
            assert "no weapons" in answer.json()["error"]["message"]
        assert server.client.post("/v1/videos", json={"prompt": "break"}).status_code == 400  # it fails closed
        assert server.wait(server.create(seed=1)["id"])["status"] == "completed"
        bright = server.wait(server.create(seed=200)["id"])
        assert (bright["error"]["code"], bright["error"]["message"]) == ("moderation_blocked", "too bright")
        assert bright["id"] not in server.store.names()
    with pytest.raises(UserError, match="package"):
        moderator("no.such.module:name")
    assert verdict(lambda: 1 // 0 and None) == "it could not be examined (ZeroDivisionError)"


# ---- around it -----------------------------------------------------------------------------------


class Leaving(Fake):
    """Leaves something behind in its first attempt and stops there."""

    found: list[bool]

    def do(self, order: Order, folder: Path, watch: Watch) -> Done:
        mark = folder / LATENTS / "mark"
        self.found = [*getattr(self, "found", []), mark.exists()]
        mark.touch()
        if len(self.found) == 1:
            watch.stopping.set()
        return super().do(order, folder, watch)


def test_what_an_attempt_left_is_there_for_the_next_and_then_gone(tmp_path: Path) -> None:
    with serving(tmp_path, engine=False) as server:
        name = server.create()["id"]
        settings, worker = settings_of(tmp_path / "data"), Leaving()
        engine = Engine(settings, Model(None, settings.limits), worker, "test")
        engine.run()
        assert server.client.get(f"/v1/videos/{name}").json()["status"] == "queued"
        engine.stopping.clear()
        thread = threading.Thread(target=engine.run)
        thread.start()
        assert server.wait(name)["status"] == "completed"
        engine.stop()
        thread.join(LIMIT)
        engine.jobs.engine.dispose()
        assert worker.found == [False, True]
        assert list((tmp_path / "data" / "scratch" / "latents").iterdir()) == []


def test_engines_are_started_again_and_know_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDLINE_API_KEYS", "a-key-of-the-test")
    told = tmp_path / "told"
    code = (
        f"import os; open({str(told)!r}, 'a').write(str(sorted(k for k in os.environ if 'WORLDLINE' in k)) + chr(10))"
    )
    engines = Engines([sys.executable, "-c", code], 1, "sqlite:///x")
    engines.start()
    until(lambda: told.exists() and len(told.read_text().splitlines()) >= 3)
    engines.stop()
    assert set(told.read_text().splitlines()) == {"['WORLDLINE_DATABASE_URL']"}


def test_an_engine_keeps_its_name_and_shares_it_with_no_other(tmp_path: Path) -> None:
    with named(tmp_path) as first:
        with named(tmp_path) as second:
            assert first != second
        with named(tmp_path) as third:
            assert third == second
    with named(tmp_path) as again:
        assert again == first


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_any_store_keeps_what_is_put_in(kind: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store") if kind == "folder" else f"memory://{tmp_path.name}")
    file, back = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"0123456789")
    store.put(file, "x/one/video.mp4")
    store.copy("x/one/video.mp4", "y/two/video.mp4")
    store.fetch("y/two/video.mp4", back)
    assert back.read_bytes() == b"0123456789"
    with store.open("y/two/video.mp4") as held:
        held.seek(7)
        assert held.read(2) == b"78"
    assert (store.size("x/one/video.mp4"), sorted(store.names()), store.names("x")) == (10, ["x", "y"], ["one"])
    store.remove("x")
    store.remove("x")
    assert store.names() == ["y"]
    for ask in (store.size, store.open, lambda key: store.fetch(key, back)):
        with pytest.raises(FileNotFoundError):
            ask("x/one/video.mp4")
    if kind == "folder":
        assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["video.mp4"]


class Remembering(MemoryFileSystem):
    """As stores behind a network, it asks for a listing once and believes it from then on."""

    listed: ClassVar[dict[str, Any]] = {}

    def ls(self, path: str, detail: bool = True, **how: Any) -> Any:
        found = self.listed.setdefault(path, super().ls(path, detail=True))
        return found if detail else [one["name"] for one in found]

    def exists(self, path: str, **how: Any) -> bool:
        parent = self.listed.get(path.rpartition("/")[0])
        return super().exists(path) if parent is None else path in [one["name"] for one in parent]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listed.clear()


def test_what_others_put_into_a_store_is_seen(tmp_path: Path) -> None:
    store, other = (Store(f"memory://{tmp_path.name}") for _ in range(2))
    store.fs = Remembering()
    (tmp_path / "a").write_bytes(b"0123456789")
    store.put(tmp_path / "a", "x/one/video.mp4")
    assert store.names() == ["x"]
    other.put(tmp_path / "a", "y/two/video.mp4")
    assert sorted(store.names()) == ["x", "y"]
    other.put(tmp_path / "a", "z/three/video.mp4")
    store.remove("z")
    assert sorted(other.names()) == ["x", "y"]


def test_a_server_whose_files_lie_elsewhere(tmp_path: Path) -> None:
    with serving(tmp_path, store_url=f"memory://{tmp_path.name}") as server:
        made = server.finished()
        whole = server.client.get(f"/v1/videos/{made['id']}/content")
        assert whole.content[4:8] == b"ftyp"
        part = server.client.get(f"/v1/videos/{made['id']}/content", headers={"range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        again = server.client.post(f"/v1/videos/{made['id']}/remix", json={"prompt": "a blue ball"}).json()
        assert server.wait(again["id"])["status"] == "completed"
        sent = {"prompt": (None, "on"), "seconds": (None, "1"), "video": whole.content}
        longer = server.client.post("/v1/videos/extensions", files=sent).json()
        assert server.wait(longer["id"])["status"] == "completed"
        for name in (made["id"], again["id"], longer["id"]):
            assert server.client.delete(f"/v1/videos/{name}").status_code == 200
        assert server.store.names() == []
        assert not (tmp_path / "data" / "store").exists()


def test_metrics_and_health_tell_what_there_is(server: Served) -> None:
    server.finished()
    assert server.client.get("/healthz").json()["status"] == "ok"
    assert server.client.get("/readyz").json()["status"] == "ready"
    text = server.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['worldline_jobs{status="completed"}']) >= 1
    assert float(lines['worldline_requests_total{method="POST",route="/v1/videos",status="200"}']) >= 1
    assert not [name for name in lines if "video_0" in name]  # no ids


def test_a_log_is_one_json_object_a_line() -> None:
    record = logging.makeLogRecord({"name": "worldline.api", "msg": "answered\nx", "levelname": "INFO", "status": 200})
    line = Lines().format(record)
    assert "\n" not in line
    assert json.loads(line)["status"] == 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--database-url", "mysql://x"], "--database-url"),
        (["--model", "/nowhere"], "--model"),
        (["--moderation", "nothing:here"], "--moderation"),
        (["--api-keys", "/nowhere/keys"], "--api-keys"),
        (["--data-dir", "/dev/null/x"], "--data-dir"),
        (["--batch", "0"], "--batch"),
        (["--port", "99999"], "65535"),
        (["--store", "nothing://x"], "--store"),
        (["--database-url", "postgresql://127.0.0.1:1/x"], "cannot be opened"),
    ],
)
def test_a_server_that_cannot_be_says_why_and_does_not_start(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLDLINE_API_KEYS", raising=False)
    assert main(["serve", "--data-dir", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_keys_are_read_from_a_file_and_weak_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the studio\nlong-enough-key  # mine\n\nanother-long-key\n")
    monkeypatch.setenv("WORLDLINE_API_KEYS", "third-long-key, fourth-long-key")
    assert len(read_keys(file)) == 4
    settings = settings_of(tmp_path / "data", keys=file)
    owners = {settings.owner(f"Bearer {key}") for key in ("long-enough-key", "third-long-key", "fourth-long-key")}
    assert len(owners) == 3
    assert None not in owners
    file.write_text("short\n")
    with pytest.raises(UserError, match="characters"):
        read_keys(file)


def test_the_api_never_imports_torch() -> None:
    code = "import sys, worldline.serve.api; print([m for m in ('torch', 'av', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
