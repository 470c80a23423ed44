"""A request that a client sends again, because it did not see the answer, makes nothing twice."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai

from tests.serve.served import Served, serving
from worldline.media.write import write_image
from worldline.serve.settings import Limits

AGAIN = {"idempotency-key": "5f2c-first"}


def test_a_request_that_is_sent_again_makes_one_video(server: Served) -> None:
    body = {"prompt": "a red ball"}
    first = server.client.post("/v1/videos", json=body, headers=AGAIN).json()
    again = server.client.post("/v1/videos", json=dict(reversed(body.items())), headers=AGAIN)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert again.json()["worldline"]["seed"] == first["worldline"]["seed"]
    other = server.client.post("/v1/videos", json={"prompt": "a blue ball"}, headers=AGAIN)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    server.wait(first["id"])
    other = server.client.post(f"/v1/videos/{first['id']}/remix", json=body, headers=AGAIN)
    assert other.status_code == 422
    assert server.client.post("/v1/videos", json=body).json()["id"] != first["id"]
    server.client.delete(f"/v1/videos/{first['id']}")
    assert server.client.post("/v1/videos", json=body, headers=AGAIN).status_code == 404  # it never comes back
    for key in ("", "x" * 256, "two words", "ü".encode()):
        assert server.client.post("/v1/videos", json=body, headers={"idempotency-key": key}).status_code == 400


def test_files_are_part_of_what_is_sent_again(server: Served, tmp_path: Path) -> None:
    headers = {"idempotency-key": "with-a-file"}
    ids = []
    for shade in (90, 90, 91):
        write_image(tmp_path / "a.png", np.full((32, 32, 3), shade, np.uint8))
        files = {"input_reference": ("upload", (tmp_path / "a.png").read_bytes())}
        sent = server.client.post("/v1/videos", data={"prompt": "a red ball"}, files=files, headers=headers)
        ids.append(sent.json().get("id"))
    assert ids[0] == ids[1]
    assert ids[2] is None
    assert server.wait(ids[0])["status"] == "completed"
    left = [name for name in server.store.names() if server.jobs.wanted(name) is None and name.startswith("video")]
    assert left == []


def test_the_keys_of_one_client_are_not_anothers(tmp_path: Path) -> None:
    with serving(tmp_path, keys="a-key-of-the-test another-key", engine=False) as server:
        made = [
            server.client.post(
                "/v1/videos", json={"prompt": prompt}, headers={**AGAIN, "authorization": f"Bearer {key}"}
            )
            for prompt, key in (("a red ball", "a-key-of-the-test"), ("a blue ball", "another-key"))
        ]
        assert [answer.status_code for answer in made] == [200, 200]


def test_a_full_queue_still_knows_what_it_accepted(tmp_path: Path) -> None:
    with serving(tmp_path, engine=False, limits=Limits(queue=1)) as server:
        first = server.client.post("/v1/videos", json={"prompt": "a red ball"}, headers=AGAIN).json()
        again = server.client.post("/v1/videos", json={"prompt": "a red ball"}, headers=AGAIN)
        assert (again.status_code, again.json()["id"]) == (200, first["id"])
        late = {"idempotency-key": "late"}
        assert server.client.post("/v1/videos", json={"prompt": "a red ball"}, headers=late).status_code == 429
        server.client.delete(f"/v1/videos/{first['id']}")
        assert server.client.post("/v1/videos", json={"prompt": "a red ball"}, headers=late).status_code == 200


def test_the_sdks_retries_make_one_video_once_it_names_the_header(server: Served, monkeypatch: Any) -> None:
    """It makes a key for each call and keeps it in retries, but has no name for the header by default."""
    sent, real = [], httpx2.HTTPTransport.handle_request

    def lose_the_first_answer(self: Any, request: Any) -> Any:
        answer = real(self, request)
        if request.method == "POST":
            sent.append(request.headers.get("idempotency-key"))
            if len(sent) == 1:
                raise httpx2.ReadTimeout("the answer was lost")
        return answer

    before = len(server.client.get("/v1/videos", params={"limit": 100}).json()["data"])
    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", lose_the_first_answer)
    with openai.OpenAI(api_key="none", base_url=f"{server.url}/v1") as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client._idempotency_header = "Idempotency-Key"
        video = client.videos.create(prompt="a red ball")
    assert len(sent) == 2
    assert sent[0] == sent[1]
    data = server.client.get("/v1/videos", params={"limit": 100}).json()["data"]
    assert (len(data), data[0]["id"]) == (before + 1, video.id)
