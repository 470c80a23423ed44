"""The API from outside: what it accepts, shows, stops and hands out."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.serve.served import LIMIT, Served, serving
from worldline.media.read import probe, read_video
from worldline.media.write import write_video
from worldline.serve.jobs import born
from worldline.serve.settings import Limits


def picture(width: int = 64, height: int = 64) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(held, "PNG")
    return held.getvalue()


def refused(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


# ---- creating ------------------------------------------------------------------------------------


def test_json_forms_and_bracketed_names_ask_for_the_same(server: Served) -> None:
    card = {"at": 0, "text": "a red ball"}, {"at": 0.5, "text": "a blue cube", "cut": True}
    body = {"prompt": "two things", "seed": 5, "storyboard": list(card), "seconds": "1"}
    form = {"prompt": "two things", "seed": "5", "seconds": "1"}
    numbered = {f"storyboard[{i}][{k}]": str(v) for i, c in enumerate(card) for k, v in c.items()}
    unnamed = [("storyboard[][at]", "0"), ("storyboard[][text]", "a red ball"), ("storyboard[][at]", "0.5"),
               ("storyboard[][text]", "a blue cube"), ("storyboard[][cut]", "true")]  # fmt: skip
    answers = [
        server.client.post("/v1/videos", json=body),
        server.client.post("/v1/videos", files={name: (None, value) for name, value in (form | numbered).items()}),
        server.client.post("/v1/videos", files=[(n, (None, v)) for n, v in [*form.items(), *unnamed]]),
    ]
    videos = [answer.json() for answer in answers]
    for video in videos:
        server.wait(video["id"])
    works = [server.jobs.get("anyone", video["id"]) for video in videos]
    assert works[0] is not None
    assert works[0].work["verb"] == "storyboard"
    assert [work and work.work for work in works] == [works[0].work] * 3


@pytest.mark.parametrize("name", ["image_url", "brackets"])
def test_a_picture_as_a_data_url_is_kept_as_a_picture(server: Served, name: str) -> None:
    import base64

    url = "data:image/png;base64," + base64.b64encode(picture(50, 40)).decode()
    if name == "image_url":
        video = server.create(input_reference={"image_url": url})
    else:
        files = {"prompt": (None, "a ball"), "input_reference[image_url]": (None, url)}
        video = server.client.post("/v1/videos", files=files).json()
    assert server.wait(video["id"])["status"] == "completed"
    assert video["worldline"]["edit"] == "animate"


def test_what_is_not_asked_for_is_the_models_own(server: Served) -> None:
    video = server.client.post("/v1/videos", json={"prompt": "a red ball"}).json()
    defaults = server.client.get("/v1/models/worldline-tiny").json()["defaults"]
    assert video["size"] == f"{defaults['width']}x{defaults['height']}"
    assert video["seconds"] == defaults["seconds"]
    assert video["model"] == server.client.get("/v1/models").json()["data"][0]["id"] == "worldline-tiny"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": "a" * 32_001}, "prompt", "32000"),
        ({"prompt": "a\0b"}, "prompt", "NUL"),
        ({"prompt": "a \ud800"}, "prompt", "unicode"),
        ({"size": "5000x64"}, "size", "4096x64"),
        ({"size": "64"}, "size", "pattern"),
        ({"size": "4096x4096", "num_frames": 1}, "size", "2048x2048"),
        ({"seconds": 4}, "seconds", "string"),
        ({"seconds": "four"}, "seconds", "pattern"),
        ({"seconds": "500"}, "seconds", "120"),
        ({"seconds": "1", "num_frames": 4}, "seconds", "num_frames"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater"),
        ({"guidance_scale": 1e9}, "guidance_scale", "100"),
        ({"seed": -1}, "seed", "greater"),
        ({"seed": "7"}, "seed", "integer"),
        ({"fps": 1000}, "fps", "240"),
        ({"model": "worldline-huge"}, "model", "worldline-tiny"),
        ({"guidence_scale": 3}, "guidence_scale", "no parameter"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference.file_id", "no files"),
        ({"input_reference": {}}, "input_reference", "exactly one"),
        ({"input_reference": {"image_url": "data:image/png;base64,AAAA"}}, "input_reference", "not a picture"),
        ({"input_reference": {"image_url": "http://127.0.0.1/"}}, "input_reference", "fetches nothing"),
        ({"characters": [{"id": "char_1"}]}, "characters", "cannot be shown"),
        ({"loop": True, "num_frames": 9}, "loop", "13 frames"),
        ({"storyboard": [{"at": 1, "text": "a"}]}, "storyboard", "begins at 0"),
        ({"storyboard": [{"at": 0, "text": " "}]}, "storyboard", "text or an image"),
        ({"storyboard": [{"at": 0, "text": "a"}], "loop": True}, "storyboard", "loop"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_field(
    server: Served, fields: dict[str, Any], param: str, says: str
) -> None:
    body = json.dumps({"prompt": "a red ball", **fields})
    error = refused(server.client.post("/v1/videos", content=body, headers={"content-type": "application/json"}))
    assert error["param"] == param
    assert says in error["message"]
    assert "\n" not in error["message"]
    assert "--" not in error["message"]


# ---- reading -------------------------------------------------------------------------------------


def test_a_page_after_another_misses_nothing_even_what_was_deleted(tmp_path: Path) -> None:
    with serving(tmp_path, engine=False) as server:
        made = [server.create()["id"] for _ in range(5)]
        assert sorted(made) == made

        def page(**query: Any) -> dict[str, Any]:
            return dict(server.client.get("/v1/videos", params=query).json())

        assert [video["id"] for video in page(order="asc", limit=2)["data"]] == made[:2]
        server.client.delete(f"/v1/videos/{made[1]}")
        following = page(order="asc", limit=2, after=made[1])
        assert [video["id"] for video in following["data"]] == made[2:4]
        assert following["has_more"] is True
        last = page(order="asc", after=made[3])
        assert (last["data"][0]["id"], last["has_more"]) == (made[4], False)
        empty = page(limit=0)
        assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
        for query in ({"limit": "101"}, {"limit": "x"}, {"order": "up"}):
            assert refused(server.client.get("/v1/videos", params=query))["param"] in query


def test_ranges_of_a_file_are_those_of_its_bytes(server: Served) -> None:
    path = f"/v1/videos/{server.finished()['id']}/content"
    whole = server.client.get(path).content
    assert server.client.get(path).headers["content-length"] == str(len(whole))
    for asked, part in (
        ("5-9", whole[5:10]),
        (f"{len(whole) - 3}-", whole[-3:]),
        ("-4", whole[-4:]),
        ("0-99999999", whole),
    ):
        answer = server.client.get(path, headers={"range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, part)
    assert refused(server.client.get(path, headers={"range": f"bytes={len(whole)}-"}), 416)["param"] == "range"
    assert server.client.get(path, headers={"range": "lines=1-2"}).content == whole
    assert refused(server.client.get(path, params={"variant": "audio"}))["param"] == "variant"


def test_events_tell_each_step_then_the_end(server: Served) -> None:
    server.worker.gate.clear()
    video = server.create()
    events: list[tuple[str, dict[str, Any]]] = []

    def follow() -> None:
        with server.client.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    events.append((name, json.loads(line[6:])))
                    if events[-1][1]["status"] == "in_progress":
                        server.worker.gate.set()

    thread = threading.Thread(target=follow)
    thread.start()
    thread.join(LIMIT)
    assert events[-1][0] == "completed"
    assert events[-1][1]["progress"] == 100
    assert {name for name, _ in events[:-1]} == {"progress"}
    progress = [event["progress"] for _, event in events]
    assert progress == sorted(progress)
    assert all(event["progress"] < 100 for _, event in events[:-1])


def test_a_preview_is_shown_while_a_job_is_in_work(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldline.serve.engine.GLIMPSE", 0.0)
    server.worker.gate.clear()
    video = server.create()
    server.working()
    with server.client.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
        found = next(line for line in answer.iter_lines() if '"preview"' in line)
        server.worker.gate.set()
    assert json.loads(found[6:])["preview"].startswith("data:image/webp;base64,UklGR")
    server.wait(video["id"])


# ---- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_job_in_work_stops_at_its_step_and_never_comes_back(tmp_path: Path, how: str) -> None:
    with serving(tmp_path) as server:
        server.worker.gate.clear()
        name = server.create()["id"]
        server.working()
        if how == "cancel":
            video = server.client.post(f"/v1/videos/{name}/cancel").json()
            assert (video["status"], video["error"]["code"]) == ("failed", "cancelled")
            assert refused(server.client.post(f"/v1/videos/{name}/cancel"))["code"] == "already_ended"
        else:
            assert server.client.delete(f"/v1/videos/{name}").json()["deleted"] is True
        # The gate stays shut: the engine must leave the job by itself before it can do the next.
        server.worker.waiting.clear()
        following = server.create()["id"]
        server.working()
        server.worker.gate.set()
        assert server.wait(following)["status"] == "completed"
        after = server.client.get(f"/v1/videos/{name}")
        if how == "cancel":
            assert after.json()["status"] == "failed"
            assert refused(server.client.get(f"/v1/videos/{name}/content"), 404)["code"] == "video_not_ready"
        else:
            refused(after, 404)
        assert len(server.worker.done) == 1
        assert server.store.names() == [following]


def test_a_waiting_job_that_is_cancelled_is_never_begun(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.worker.gate.clear()
        first = server.create()["id"]
        server.working()
        second = server.create(seed=2)["id"]
        server.client.post(f"/v1/videos/{second}/cancel")
        server.worker.gate.set()
        server.wait(first)
        third = server.finished(seed=3)["id"]
        assert [order.settings["seed"] for order in server.worker.done] == [1, 3]
        assert server.wait(second)["error"]["code"] == "cancelled"
        assert third != second


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, engine=False, limits=Limits(queue=2)) as server:
        kept = [server.create()["id"] for _ in range(2)]
        answer = server.client.post("/v1/videos", files={"prompt": (None, "a"), "input_reference": picture()})
        assert refused(answer, 429)["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0
        assert server.store.names() == []  # nothing of what was sent stays
        server.client.delete(f"/v1/videos/{kept[0]}")
        server.create()


# ---- editing -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(file, np.full((17, 32, 48, 3), 120, np.uint8), 16)
    return file.read_bytes()


STRETCHES = {"keep[0][0]": "0", "keep[0][1]": "0.5", "keep[1][0]": "0.75", "keep[1][1]": "1"}


@pytest.fixture(scope="module")
def source(server: Served, clip: bytes) -> str:
    """The id of a video as large as the clip."""
    made = server.client.post("/v1/videos/edits", files={"prompt": (None, "a ball"), "video": clip}).json()
    return str(server.wait(made["id"])["id"])


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        ({"edit": "remix", "strength": "0.5"}, 17),
        ({"edit": "loop", "seconds": "0.3"}, 25),
        ({"edit": "recut", "join": "0", **STRETCHES}, 12),
        ({"edit": "outpaint", "size": "64x64"}, 17),
        ({"edit": "blend", "seconds": "0.25", "second": "clip"}, 30),
        ({"edit": "inpaint", "mask": "mask"}, 17),
    ],
)  # fmt: skip
def test_edits_take_a_file_or_a_video_that_is_here(
    server: Served, clip: bytes, source: str, fields: dict[str, str], frames: int
) -> None:
    sent: dict[str, Any] = {name: (None, value) for name, value in fields.items()}
    if "second" in sent:
        sent["second"] = clip
    if "mask" in sent:
        sent["mask"] = picture(48, 32)
    for video in ({"video": clip}, {"video[id]": (None, source)}):
        answer = server.client.post("/v1/videos/edits", files={"prompt": (None, "a ball"), **video, **sent})
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert made["worldline"]["edit"] == fields["edit"]
        assert made["worldline"]["frames"] == frames
        if "video[id]" in video:
            assert made["worldline"]["made_from"] == [source]
        assert server.wait(made["id"])["status"] == "completed"


def test_an_edit_of_a_video_that_is_deleted_meanwhile_still_ends_well(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        name = server.finished()["id"]
        server.worker.gate.clear()
        body = {"prompt": "on", "seconds": "1", "video": {"id": name}}
        made = server.client.post("/v1/videos/extensions", json=body).json()
        server.client.delete(f"/v1/videos/{name}")
        server.worker.gate.set()
        assert made["seconds"] == "2"
        assert server.wait(made["id"])["status"] == "completed"


def test_a_character_can_be_extended_and_edited(server: Served, clip: bytes) -> None:
    character = server.client.post("/v1/videos/characters", files={"name": (None, "Bob"), "video": clip}).json()
    assert character == server.client.get(f"/v1/videos/characters/{character['id']}").json()
    body = {"prompt": "on", "seconds": "1", "video": {"id": character["id"]}}
    made = server.client.post("/v1/videos/extensions", json=body).json()
    assert (made["seconds"], made["worldline"]["made_from"]) == ("2", [character["id"]])
    assert server.wait(made["id"])["status"] == "completed"
    refused(server.client.get("/v1/videos/characters/char_none"), 404)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"edit": "blend"}, "second"),
        ({"edit": "inpaint"}, "mask"),
        ({"edit": "outpaint"}, "size"),
        ({"edit": "outpaint", "size": "16x16"}, "size"),
        ({"edit": "recut"}, "keep"),
        ({"edit": "recut", "keep": [[0, 9]]}, "keep"),
        ({"edit": "recut", "keep": [[0, 0.2], [0.5, 1]], "join": 5}, "join"),
        ({"edit": "remix", "keep": [[0, 1]]}, "keep"),
        ({"edit": "paint"}, "edit"),
        ({"strength": 2}, "strength"),
        ({"video": {"id": "video_none"}}, "video_id"),
    ],
)
def test_an_edit_that_cannot_be_names_its_field(server: Served, fields: dict[str, Any], param: str) -> None:
    video = server.finished()
    body = {"prompt": "a ball", "video": {"id": video["id"]}, **fields}
    answer = server.client.post("/v1/videos/edits", json=body)
    assert refused(answer, 404 if param == "video_id" else 400)["param"] == param


def test_what_is_not_completed_can_neither_be_read_nor_edited(tmp_path: Path) -> None:
    with serving(tmp_path, engine=False) as server:
        name = server.create()["id"]
        assert refused(server.client.get(f"/v1/videos/{name}/content"), 404)["code"] == "video_not_ready"
        body = {"prompt": "a blue ball"}
        assert refused(server.client.post(f"/v1/videos/{name}/remix", json=body))["code"] == "video_not_ready"


# ---- what becomes of files -----------------------------------------------------------------------


def test_files_go_when_they_expire_and_the_job_stays(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        name = server.finished()["id"]
        job = server.jobs.get("anyone", name)
        assert job is not None
        assert read_video(tmp_path / "data" / "store" / str(job.files) / "video.mp4").frames.shape == (17, 64, 64, 3)
        with server.jobs.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE jobs SET expires_at = 1")
        server.house.round()
        assert refused(server.client.get(f"/v1/videos/{name}/content"), 404)["code"] == "expired"
        assert server.client.get(f"/v1/videos/{name}").json()["status"] == "completed"
        assert not server.store.fs.exists(f"{server.store.root}/{job.files}")


def test_files_of_no_job_and_of_attempts_that_died_are_swept(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        name = server.finished()["id"]
        other = name[:-1] + ("0" if name[-1] != "0" else "1")
        assert born(other) == born(name)
        file = tmp_path / "x"
        file.write_bytes(b"x")
        for key in (f"{name}/dead/video.mp4", f"{name}/inputs/a.png", f"{other}/inputs/a.png"):
            server.store.put(file, key)
        server.house.round()  # too young to be given up
        assert sorted(server.store.names()) == sorted([name, other])
        server.house.round(grace=-1)
        assert server.store.names() == [name]
        assert server.store.names(name) == [str(server.jobs.get("anyone", name).files).split("/")[1]]  # type: ignore[union-attr]
        assert server.client.get(f"/v1/videos/{name}/content").status_code == 200


def test_a_loop_is_as_long_as_was_asked(server: Served, tmp_path: Path) -> None:
    video = server.finished(loop=True, num_frames=25)
    file = tmp_path / "loop.mp4"
    file.write_bytes(server.client.get(f"/v1/videos/{video['id']}/content").content)
    assert (probe(file).frames, video["seconds"]) == (25, "1.5")
