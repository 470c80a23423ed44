"""An OpenAI-compatible endpoint, held against a server on this machine that fails as real ones do."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worldline.caption.captioner import REQUESTS, Ways, captioner_of
from worldline.caption.endpoint import Endpoint, EndpointCaptioner
from worldline.caption.rewrite import rewrite, writer_of
from worldline.errors import UserError


class Server:
    """Answers chat completions with `say`; the first requests get the statuses in `failures`."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.say = lambda body: "a red ball"
        self.together = self.most = 0
        self.barrier: threading.Barrier | None = None
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "tiny-vlm"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    status = server.failures.pop(0) if server.failures else 200
                    server.together += 1
                    server.most = max(server.most, server.together)
                if server.barrier is not None:
                    server.barrier.wait(30)
                with server.lock:
                    server.together -= 1
                if status != 200:
                    self.answer(status, {"error": {"message": "no such luck"}}, {"Retry-After": "7"})
                    return
                message = {"choices": [{"message": {"role": "assistant", "content": server.say(body)}}]}
                self.answer(200, message | {"usage": {"prompt_tokens": 11, "completion_tokens": 3}})

            def answer(self, status: int, body: dict[str, Any], more: dict[str, str] | None = None) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in (more or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def clip(value: int) -> np.ndarray:
    return np.full((20, 24, 32, 3), value, np.uint8)


def test_frames_are_sent_as_pictures_with_the_request(server: Server) -> None:
    captioner = captioner_of(server.address, Ways(frames=3, side=16))
    assert captioner.model == "tiny-vlm"
    said = captioner.describe([clip(200)], "short")
    assert said == [("a red ball", None)]
    (request,) = server.requests
    words, *pictures = request["messages"][0]["content"]
    assert words == {"type": "text", "text": REQUESTS["short"]} == {"type": "text", "text": captioner.prompt("short")}
    assert len(pictures) == 3
    data = pictures[0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (16, 12)
    assert abs(int(np.asarray(picture).mean()) - 200) < 3


def test_what_fails_in_passing_is_sent_again_after_the_pause_that_is_named(server: Server) -> None:
    server.failures = [503, 429]
    pauses: list[float] = []
    endpoint = Endpoint(server.address, Ways(model="m"), pauses.append)
    assert endpoint.chat("hello") == "a red ball"
    assert pauses == [7.0, 7.0]
    assert endpoint.cost.as_dict() == {"requests": 3, "retries": 2, "prompt_tokens": 11, "completion_tokens": 3}


def test_what_does_not_pass_is_told_at_once(server: Server) -> None:
    server.failures = [401]
    endpoint = Endpoint(server.address, Ways(model="m"), lambda seconds: pytest.fail("waited"))
    with pytest.raises(UserError, match=r"401 .*no such luck"):
        endpoint.chat("hello")


def test_an_endpoint_that_stays_away_is_given_up(server: Server) -> None:
    pauses: list[float] = []
    server.failures = [500] * 3
    with pytest.raises(UserError, match=r"no answer after 3 attempts \(500"):
        Endpoint(server.address, Ways(model="m", retries=2), pauses.append).chat("hello")
    assert len(pauses) == 2
    with pytest.raises(UserError, match="no answer after 2 attempts"):
        Endpoint("http://127.0.0.1:9/v1", Ways(model="m", retries=1), pauses.append).chat("hello")


def test_clips_are_asked_about_at_once_and_answered_in_order(server: Server) -> None:
    server.barrier = threading.Barrier(4)

    def shade(body: dict[str, Any]) -> str:
        data = body["messages"][0]["content"][1]["image_url"]["url"].split(",")[1]
        return str(round(float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean()) / 50))

    server.say = shade
    ways = Ways(model="m", frames=1, concurrency=4)
    said = EndpointCaptioner(Endpoint(server.address, ways), ways).describe([clip(50 * n) for n in (4, 1, 3, 2)])
    assert [spoken.text for spoken in said] == ["4", "1", "3", "2"]
    assert server.most == 4


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDLINE_TEST_KEY", "made-up")
    Endpoint(server.address, Ways(model="m", key_variable="WORLDLINE_TEST_KEY")).chat("hello")
    monkeypatch.delenv("WORLDLINE_TEST_KEY")
    Endpoint(server.address, Ways(model="m", key_variable="WORLDLINE_TEST_KEY")).chat("hello")
    assert server.headers[0]["Authorization"] == "Bearer made-up"
    assert "Authorization" not in server.headers[1]


def test_a_writer_that_changes_a_fact_is_asked_again(server: Server) -> None:
    answers = ["A shiny blue ball rolls to the left.", "A shiny red ball rolls to the left, in warm light."]
    server.say = lambda body: answers.pop(0)
    write, by = writer_of(server.address)
    made = rewrite("a red ball rolls left", write, by)
    assert (made.text, made.by, made.note) == ("A shiny red ball rolls to the left, in warm light.", "tiny-vlm", "")
    assert "colour of the red ball: red, not blue" in server.requests[1]["messages"][0]["content"]


def test_a_writer_that_will_not_keep_facts_is_refused(server: Server) -> None:
    server.say = lambda body: "Two red balls roll to the right."
    made = rewrite("a red ball rolls left", *writer_of(server.address))
    assert made.text == made.prompt
    assert "changed what was said" in made.note
