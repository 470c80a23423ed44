"""Studio's files as they are sent, and what the API has for it that the contract does not."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest

from tests.serve.served import Served
from tests.serve.test_api import picture, refused

FILES = sorted(file.name for file in (files("worldline.serve") / "studio").iterdir())
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_sent_as_what_it_is(server: Served, name: str) -> None:
    answer = server.client.get(f"/studio/{name}")
    assert answer.headers["content-type"].partition(";")[0] == KINDS[name.rpartition(".")[2]]
    assert answer.content == (files("worldline.serve") / "studio" / name).read_bytes()


def test_the_page_runs_nothing_but_its_own_files(server: Served) -> None:
    answer = server.client.get("/")
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    held = answer.text
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", held)
    named = re.findall(r'(?:src|href)="([^"#]*)"', held)
    assert {name for name in named if name.startswith("/studio/")} >= {"/studio/app.js", "/studio/base.css"}
    assert all(name.startswith("/") for name in named if name)
    modules = {name for name in FILES if name.endswith(".js")}
    assert modules == {name.removeprefix("/studio/") for name in named if name.endswith(".js")}


def test_a_file_that_has_not_changed_is_not_sent_again(server: Served) -> None:
    first = server.client.get("/studio/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = server.client.get("/studio/app.js", headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert server.client.get("/studio/dom.js", headers={"if-none-match": first.headers["etag"]}).status_code == 200
    head = server.client.head("/")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("name", ["..%2fapi.py", "%2e%2e/api.py", "index.html/", "", "nothing.js", "a%00.js"])
def test_no_name_leads_out_of_the_folder(server: Served, name: str) -> None:
    refused(server.client.get(f"/studio/{name}"), 404)


# ---- rewriting -----------------------------------------------------------------------------------


def test_a_prompt_is_rewritten_and_keeps_what_it_says(server: Served) -> None:
    told = server.client.post("/v1/videos/rewrites", json={"prompt": "a red ball rolls to the right"}).json()
    assert told["object"] == "video.rewrite"
    assert told["rewritten_from"] == "a red ball rolls to the right"
    assert {"red", "ball", "rolls", "right", "floor"} <= set(told["prompt"].replace(",", "").split())
    form = server.client.post("/v1/videos/rewrites", files={"prompt": (None, told["rewritten_from"])}).json()
    assert form == told
    kept = server.client.post("/v1/videos/rewrites", json={"prompt": "a dog barks at the moon"}).json()
    assert kept["prompt"] == kept["rewritten_from"] == "a dog barks at the moon"
    assert "more than the worlds" in kept["note"]


@pytest.mark.parametrize("fields", [{}, {"prompt": ""}, {"prompt": "  "}, {"prompt": 3}, {"prompt": "a\0b"}])
def test_what_cannot_be_rewritten_is_a_mistake(server: Served, fields: dict[str, Any]) -> None:
    assert refused(server.client.post("/v1/videos/rewrites", json=fields))["param"] == "prompt"


def test_a_video_of_a_rewritten_prompt_says_what_was_asked_for(server: Served) -> None:
    asked = "a red ball rolls to the right"
    told = server.client.post("/v1/videos/rewrites", json={"prompt": asked}).json()
    video = server.finished(prompt=asked, rewrite=True)
    assert (video["prompt"], video["worldline"]["rewritten_from"]) == (told["prompt"], asked)
    assert server.worker.done[-1].settings["rewritten_from"] == asked
    plain = server.finished(prompt="a dog barks", rewrite=True)
    assert (plain["prompt"], plain["worldline"]["rewritten_from"]) == ("a dog barks", None)
    body = {"prompt": asked, "rewrite": True, "storyboard": [{"at": 0, "text": asked}]}
    assert "rewrite" in refused(server.client.post("/v1/videos", json=body))["message"]


# ---- what a model can do -------------------------------------------------------------------------


def test_every_shape_and_example_of_a_model_is_accepted(server: Served) -> None:
    card = server.client.get("/v1/models").json()["data"][0]
    assert card["shapes"][0] == {"aspect": "1:1", "size": "64x64"}
    assert {"aspect": "16:9", "size": "112x64"} in card["shapes"]
    for shape in card["shapes"]:
        wide, high = (int(side) for side in shape["size"].split("x"))
        assert wide % card["side"] == high % card["side"] == 0
        server.create(size=shape["size"], num_frames=card["step"] + 1)
    assert len(card["examples"]) >= 4
    for prompt in card["examples"]:
        server.create(prompt=prompt)
    most = card["limits"]
    assert refused(server.client.post("/v1/videos", json={"prompt": "a", "seconds": str(int(most["seconds"]) + 1)}))
    assert refused(server.client.post("/v1/videos", json={"prompt": "a" * (most["prompt"] + 1)}))
    assert card["pictures"] == 0


def test_cards_with_pictures_come_as_a_form(server: Served) -> None:
    form = [("prompt", (None, "two")), ("seconds", (None, "1")), ("storyboard[0][at]", (None, "0")),
            ("storyboard[0][text]", (None, "a red ball")), ("storyboard[1][at]", (None, "0.5")),
            ("storyboard[1][image]", ("picture", picture())), ("storyboard[1][cut]", (None, "true"))]  # fmt: skip
    video = server.client.post("/v1/videos", files=form).json()
    assert server.wait(video["id"])["status"] == "completed"
    cards = server.worker.done[-1].about["cards"]
    assert [(card["at"], card["image"], card["cut"]) for card in cards] == [(0.0, False, False), (0.5, True, True)]
