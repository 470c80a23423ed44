"""What nobody should send: a clean refusal in OpenAI's shape each time, and a server that goes on."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image

from tests.serve.served import Served, serving
from tests.serve.test_api import picture, refused
from worldline.media.write import write_video
from worldline.serve.settings import Limits

KEY, OTHER = "the-key-of-one", "the-key-of-another"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = Limits(body=3_000_000, json=2_000_000, silence=0.3, upload_seconds=3, upload_pixels=1_000_000, queue=10**6)
    with serving(tmp_path_factory.mktemp("guarded"), keys=f"{KEY} {OTHER}", limits=limits) as server:
        yield server


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG of side x side grey pixels in a few kilobytes."""
    body = zlib.compress(b"\0" * (side // 8 + 1) * side, 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def clip(folder: Path, seconds: float = 1.0) -> bytes:
    file = folder / "clip.mp4"
    write_video(file, np.full((round(seconds * 16) + 1, 32, 48, 3), 120, np.uint8), 16)
    return file.read_bytes()


# ---- who asks ------------------------------------------------------------------------------------

STRANGERS = [None, "", "Bearer", "Bearer ", "Bearer wrong-key-here", f"Basic {KEY}", KEY, b"Bearer schl\xfcssel",
             b"Bearer \xff\xfe\x00", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]  # fmt: skip


@pytest.mark.parametrize("header", STRANGERS)
def test_a_stranger_gets_nothing_but_401(guarded: Served, header: Any) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    raw = header.encode() if isinstance(header, str) else header
    line = b"" if raw is None else b"authorization: " + raw + b"\r\n"
    for path in ("/v1/videos", "/v1/videos/none", "/v1/models", "/metrics", "/v1/nowhere"):
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode() + line + b"\r\n")
            said = b"".join(iter(lambda wire=wire: wire.recv(65536), b""))
        status = int(said.split()[1])
        if raw is not None and b"\0" in raw:
            assert status in (400, 401)  # not even a header
        else:
            assert status == 401
            assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "invalid_api_key"


def test_a_key_owns_its_jobs(guarded: Served) -> None:
    name = guarded.finished()["id"]
    other = {"authorization": f"Bearer {OTHER}"}
    for method, path in [("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")]:
        refused(guarded.client.request(method, f"/v1/videos/{name}{path}", headers=other), 404)
    body = {"prompt": "a", "seconds": "1", "video": {"id": name}}
    refused(guarded.client.post("/v1/videos/extensions", json=body, headers=other), 404)
    refused(guarded.client.post(f"/v1/videos/{name}/remix", json={"prompt": "a"}, headers=other), 404)
    assert guarded.client.get("/v1/videos", headers=other).json()["data"] == []
    assert guarded.client.get(f"/v1/videos/{name}").status_code == 200


def test_keys_are_not_kept_and_not_logged(guarded: Served, capfd: pytest.CaptureFixture[str]) -> None:
    guarded.finished()
    data = b"".join(path.read_bytes() for path in (guarded.folder / "data").rglob("*") if path.is_file())
    assert KEY.encode() not in data
    out, err = capfd.readouterr()
    assert KEY not in out + err


def test_without_keys_web_pages_of_others_are_turned_away(server: Served) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        refused(server.client.get("/v1/videos", headers=headers), 403)
    assert server.client.get("/v1/videos", headers={"origin": server.url}).status_code == 200


# ---- what is sent --------------------------------------------------------------------------------

FORM = {"content-type": "multipart/form-data; boundary=b"}
PART = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'
BODIES: dict[str, tuple[dict[str, str], bytes]] = {
    "no content type": ({}, b"{}"),
    "a text": ({"content-type": "text/plain"}, b"prompt"),
    "no JSON": ({"content-type": "application/json"}, b"{"),
    "JSON of another kind": ({"content-type": "application/json"}, b"[1]"),
    "JSON that is not UTF-8": ({"content-type": "application/json"}, b'{"prompt": "\xff"}'),
    "NaN": ({"content-type": "application/json"}, b'{"prompt": "a", "guidance_scale": NaN}'),
    "a huge number": ({"content-type": "application/json"}, b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}"),
    "deep JSON": ({"content-type": "application/json"}, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "1 MB prompt": ({"content-type": "application/json"}, b'{"prompt": "' + b"a" * 10**6 + b'"}'),
    "25 MB junk": ({"content-type": "application/json"}, b"a" * 25_000_000),
    "no boundary": ({"content-type": "multipart/form-data"}, PART),
    "an empty form": (FORM, b"--b--\r\n"),
    "an empty body": (FORM, b""),
    "a form that breaks off": (FORM, PART + b"a red ball"),
    "junk for a form": (FORM, b"\0\xff" * 1000),
    "a part without a name": (FORM, b"--b\r\ncontent-disposition: form-data\r\n\r\na\r\n--b--\r\n"),
    "a form that is not UTF-8": (FORM, PART + b"\xff\xfe\r\n--b--\r\n"),
    "a field twice": (FORM, PART + b"a\r\n" + PART + b"b\r\n--b--\r\n"),
    "a file for a prompt": (FORM, PART.replace(b'"prompt"', b'"prompt"; filename="x"') + b"a\r\n--b--\r\n"),
    "a strange character set": (
        {"content-type": "multipart/form-data; boundary=b; charset=idna"}, PART + b"\xff\r\n--b--\r\n"),
    "10000 fields": (FORM, b"".join(
        b'--b\r\ncontent-disposition: form-data; name="a%d"\r\n\r\n1\r\n' % i for i in range(10_000)) + b"--b--\r\n"),
    "brackets without end": (FORM, PART.replace(b"prompt", b"a" + b"[0]" * 500) + b"a\r\n--b--\r\n"),
    "a distant card": (FORM, PART.replace(b"prompt", b"storyboard[99999999][at]") + b"1\r\n--b--\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/edits", "/v1/videos/characters"])
def test_a_body_that_cannot_be_is_refused(guarded: Served, name: str, path: str) -> None:
    headers, body = BODIES[name]
    answer = guarded.client.post(path, content=body, headers=headers)
    assert answer.status_code in (400, 413, 415), answer.text
    refused(answer, answer.status_code)


def test_pictures_are_refused_by_their_headers(guarded: Served, tmp_path: Path) -> None:
    """Among them 1.6 gigapixels, which nothing may try to hold."""
    whole, moving = picture(64, 64), clip(tmp_path)
    long = clip(tmp_path, seconds=5)
    gif = io.BytesIO()
    Image.new("RGB", (8, 8)).save(gif, "GIF")
    files = {"40000x40000": bomb(40_000), "over the limit": picture(1100, 1000), "half": whole[: len(whole) // 2],
             "head only": whole[:30], "empty": b"", "a GIF": gif.getvalue(), "a clip": moving,
             "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n", "svg": b"<svg xmlns=''/>"}  # fmt: skip
    for data in files.values():
        answer = guarded.client.post("/v1/videos", files={"prompt": (None, "a"), "input_reference": data})
        assert refused(answer)["param"] == "input_reference"
    url = "data:image/png;base64," + base64.b64encode(files["40000x40000"]).decode()
    body = {"prompt": "a", "input_reference": {"image_url": url}}
    assert refused(guarded.client.post("/v1/videos", json=body))["param"] == "input_reference"
    clips = {"no end": moving[: len(moving) // 2], "a picture": whole, "empty": b"", "too long": long,
             "a playlist": b"#EXTM3U\nfile:///etc/passwd\n", "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
             "boxes": b"\0\0\0\x18ftypisom" + b"\xff" * 5000}  # fmt: skip
    for data in clips.values():
        answer = guarded.client.post("/v1/videos/edits", files={"prompt": (None, "a"), "video": data})
        assert refused(answer)["param"] == "video"
    assert list((guarded.folder / "data" / "scratch").glob("request-*")) == []


@pytest.mark.parametrize(
    "name", ["..", "../x", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f", "%00", "video_%0a", "a" * 5000, "%ff%fe", "*", "'--",
             "video_" + "0" * 31 + "g", "edits", "\u202evideo"]
)  # fmt: skip
def test_a_hostile_id_is_no_video(guarded: Served, name: str) -> None:
    for method, path in [("GET", ""), ("GET", "/content"), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")]:
        answer = guarded.client.request(method, f"{guarded.url}/v1/videos/{name}{path}")
        assert answer.status_code in (400, 404, 405), answer.text
        if answer.status_code != 400 or answer.headers.get("content-type") == "application/json":
            refused(answer, answer.status_code)
    refused(guarded.client.get("/v1/videos", params={"after": name}))


def test_a_body_that_comes_too_slowly_is_given_up(guarded: Served) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    head = (f"POST /v1/videos HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            "content-type: application/json\r\ncontent-length: 100\r\n\r\n{").encode()  # fmt: skip
    with socket.create_connection((host, int(port))) as wire:
        wire.settimeout(60)
        wire.sendall(head)
        said = b""
        while b"\r\n\r\n" not in said or not said.endswith(b"}}"):
            said += wire.recv(65536)
    assert int(said.split()[1]) == 408
    assert b"x-should-retry: false" in said
    assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "body_too_slow"


def test_a_body_is_not_read_beyond_its_limit(guarded: Served) -> None:
    """One that says how long it is, and one that does not; neither is held."""
    before = psutil.Process().memory_info().rss
    for body in (b"a" * 50_000_000, (b"a" * 100_000 for _ in range(500))):
        answer = guarded.client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
        assert refused(answer, 413)["code"] == "body_too_large"
    assert psutil.Process().memory_info().rss - before < 110_000_000  # 50 MB of them are this test's own


def test_unknown_places_and_methods_have_the_same_shape(guarded: Served) -> None:
    refused(guarded.client.get("/v1/nowhere"), 404)
    refused(guarded.client.get("/nowhere"), 404)
    refused(guarded.client.put("/v1/videos"), 405)
    assert guarded.client.get("/docs").status_code == 404


# ---- the OpenAPI page ----------------------------------------------------------------------------


def test_the_page_promises_what_the_server_does(guarded: Served) -> None:
    """Schemathesis makes requests from the page, good ones and bad: no answer is a failure of the server's."""
    schema = schemathesis.openapi.from_url(f"{guarded.url}/openapi.json")
    conformance = schemathesis.specs.openapi.checks
    wanted = [schemathesis.checks.not_a_server_error, conformance.response_schema_conformance,
              conformance.content_type_conformance]  # fmt: skip
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    told: Counter[str] = Counter()

    def probe(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {KEY}"})
        told[case.operation.path] += 1
        case.validate_response(answer, checks=wanted)

    for result in schema.get_all_operations():
        operation = result.ok()
        if not operation.path.endswith("/events"):
            cases = given(case=operation.as_strategy())
            examples = settings(
                max_examples=5, deadline=None, database=None, derandomize=True, suppress_health_check=quiet
            )
            examples(cases(probe))()
    assert set(told) >= {"/v1/videos", "/v1/videos/edits", "/metrics", "/v1/videos/{video_id}"}
