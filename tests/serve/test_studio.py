"""Studio in a real browser, against the command itself with the model that is shipped."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.serve.served import serving
from tests.serve.test_served_model import command, free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium; Debian: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

PATIENCE = 240_000  # milliseconds for anything that the model does, on a machine that does a lot besides
expect.set_options(timeout=PATIENCE)
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
FRAMES = 9  # of the videos that are edited


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Tests run as root in containers, where Chromium's own sandbox cannot.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with command(tmp_path_factory.mktemp("studio"), port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def opened(browser: Any, url: str, **about: Any) -> Iterator[Any]:
    """The page in a browser of its own; what it asked for elsewhere, and what went wrong in it, fails the test."""
    context = browser.new_context(viewport=WIDE, **about) if "viewport" not in about else browser.new_context(**about)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # A refusal is an answer; that the browser notes it is no fault of the page.
    page.on(
        "console", lambda said: said.type == "error" and "Failed to load" not in said.text and wrong.append(said.text)
    )
    page.goto(url)
    yield page
    elsewhere = [name for name in asked if not name.startswith((f"{url}/", f"blob:{url}/", "data:"))]
    context.close()
    assert (elsewhere, wrong) == ([], [])


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as page:
        page.wait_for_selector("html[data-ready]")
        yield page


class Api:
    """The server as another client has it."""

    def __init__(self, url: str) -> None:
        self.client = httpx2.Client(base_url=f"{url}/v1", timeout=60)

    def create(self, prompt: str, **fields: Any) -> str:
        body = {"prompt": prompt, "num_inference_steps": 2, "num_frames": FRAMES, "seed": 3, **fields}
        answer = self.client.post("/videos", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[Api]:
    api = Api(url)
    yield api
    api.client.close()


@pytest.fixture(scope="module")
def finished(url: str, api: Api, browser: Any) -> tuple[str, str]:
    """Two videos of one size, finished."""
    names = api.create("a red ball rolls to the right"), api.create("a small yellow cube jumps")
    with opened(browser, url) as page:
        for name in names:
            page.wait_for_selector(f"[data-id={name}][data-status=completed]")
    return names


def picture() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((48, 72, 3), (60, 120, 200), np.uint8)).save(held, "PNG")
    return held.getvalue()


def ask(page: Any, prompt: str, steps: int = 2, seconds: str = "0.5") -> None:
    page.fill("#prompt", prompt)
    page.fill("#seconds", seconds)
    if not page.locator("#steps").is_visible():
        page.click("#fine summary")
    page.fill("#steps", str(steps))
    page.fill("#seed", "5")


def sent(page: Any, act: Callable[[], None]) -> dict[str, Any]:
    """The video that the server accepted when something was done."""
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.ok) as answer:
        act()
    return dict(answer.value.json())


def come(page: Any, made: dict[str, Any]) -> None:
    """Waits until a video's card says that it is finished."""
    page.wait_for_selector(f".card[data-id={made['id']}][data-status=completed]")


LISTEN = """() => {
  window.steps = [];
  window.said = [];
  const bar = document.querySelector("#stage [role=progressbar]");
  const step = () => steps.push(Number(bar.getAttribute("aria-valuenow")));
  new MutationObserver(step).observe(bar, {attributes: true});
  const place = document.getElementById("said");
  const line = () => place.textContent && said.push(place.textContent);
  new MutationObserver(line).observe(place, {childList: true});
}"""
HOSTILE = "<img src=x onerror=alert(1)> & a ball"


def until(page: Any, true: str) -> None:
    """Waits for an expression; the page's policy forbids Playwright's own way."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {true}")


PLAYED = """async (video) => {
  const shown = () => video.readyState >= 2 && video.videoWidth > 0 && video.currentTime > 0;
  for (let i = 0; i < 300 && !shown(); i++) await new Promise((go) => setTimeout(go, 100));
  const canvas = Object.assign(document.createElement("canvas"), { width: 16, height: 16 });
  canvas.getContext("2d").drawImage(video, 0, 0, 16, 16);
  const levels = canvas.getContext("2d").getImageData(0, 0, 16, 16).data.filter((_, i) => i % 4 < 3);
  return [shown(), video.videoWidth, video.videoHeight, Math.max(...levels) - Math.min(...levels)];
}"""


def played(page: Any, place: str) -> None:
    """A video that plays shows a decoded picture, which is not of one colour."""
    shown, width, height, contrast = page.eval_on_selector(place, PLAYED)
    assert shown
    assert min(width, height) >= 64
    assert contrast > 20


# ---- from words to a video ----------------------------------------------------------------------


def test_a_prompt_becomes_a_video_that_plays_and_is_saved(page: Any, api: Api, tmp_path: Path) -> None:
    ask(page, "a large blue ball bounces on the floor", steps=4, seconds="1")
    page.evaluate(LISTEN)
    made = sent(page, lambda: page.click("#make"))
    come(page, made)
    played(page, "#stage video")
    until(page, "said.some((line) => line.startsWith('Finished: a large blue ball'))")
    made = api.client.get(f"/videos/{made['id']}").json()
    assert (made["worldline"]["seed"], made["worldline"]["steps"], made["seconds"]) == (5, 4, "1")
    card = page.locator(f"[data-id={made['id']}]")
    card.hover()
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.startswith("a-large-blue-ball-bounces")
    download.value.save_as(tmp_path / "saved.mp4")
    assert (tmp_path / "saved.mp4").read_bytes() == api.client.get(f"/videos/{made['id']}/content").content
    card.locator(".open").focus()
    played(page, f"[data-id={made['id']}] video")


def test_what_is_in_work_is_seen_and_cancelled_and_deleted(page: Any, api: Api) -> None:
    ask(page, HOSTILE, steps=1000)
    page.evaluate(LISTEN)
    page.on("dialog", lambda dialog: pytest.fail("the prompt was run"))
    made = sent(page, lambda: page.click("#make"))
    page.wait_for_selector("#stage[data-status=in_progress] img[src^='data:image/webp']:not([hidden])")
    expect(page.locator("#stage .state")).to_have_text(re.compile(r"Step \d+ of 1000 · \d+ (s|min) left"))
    until(page, "new Set(steps).size > 3")
    steps = page.evaluate("steps")
    assert steps == sorted(steps)
    assert 0 < steps[-1] < 100
    expect(page.locator("#stage .words")).to_have_text(HOSTILE)
    card = page.locator(f"[data-id={made['id']}]")
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".state")).to_have_text("Cancelled")
    assert api.client.get(f"/videos/{made['id']}").json()["error"]["code"] == "cancelled"
    card.locator(".open").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Delete").click()
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    dialog.get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)
    expect(dialog).to_be_hidden()
    assert api.client.get(f"/videos/{made['id']}").status_code == 404


def test_choices_come_from_the_model_and_reach_it(page: Any, api: Api) -> None:
    card = api.client.get("/models").json()["data"][0]
    assert [label.split()[-1] for label in page.locator("#shapes label").all_inner_texts()] == [
        shape["aspect"] for shape in card["shapes"]
    ]
    example = page.locator("#examples button").first
    words = example.inner_text()
    assert words in card["examples"]
    example.click()
    expect(page.locator("#prompt")).to_have_value(words)
    page.fill("#prompt", short := "a red ball")  # an example may be in the words of the training already
    page.get_by_role("button", name="Rewrite").click()
    expect(page.locator("#undo")).to_be_visible()
    assert len(page.input_value("#prompt")) > len(short)
    page.click("#undo")
    expect(page.locator("#prompt")).to_have_value(short)
    ask(page, words, seconds="1")
    page.get_by_role("radio", name="3:2").check()
    page.get_by_label("Loop", exact=True).check()
    come(page, made := sent(page, lambda: page.click("#make")))
    assert (made["size"], made["prompt"], made["seconds"]) == ("96x64", words, "1")


@pytest.mark.parametrize("way", ["drop", "file"])
def test_a_picture_comes_to_life(page: Any, api: Api, way: str) -> None:
    if way == "file":
        page.set_input_files("#first", {"name": "still.png", "mimeType": "image/png", "buffer": picture()})
    else:
        drop = """(text) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          data.items.add(new File([bytes], "still.png", {type: "image/png"}));
          for (const kind of ["dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
          }
        }"""
        page.evaluate(drop, base64.b64encode(picture()).decode())
    page.wait_for_selector(".slot.full img")
    expect(page.locator("#size")).to_have_value("96x64")  # the proportions of the picture
    ask(page, "a ball rolls")
    come(page, made := sent(page, lambda: page.click("#make")))
    assert made["worldline"]["edit"] == "animate"
    page.get_by_role("button", name="Remove the first picture").click()
    expect(page.locator(".slot.full")).to_have_count(0)


def test_a_storyboard_of_words_and_a_picture_is_made_by_keyboard_and_mouse(page: Any, api: Api) -> None:
    page.get_by_role("radio", name="Storyboard").check()
    expect(page.locator("#seconds")).to_have_value("2")
    page.fill("#seconds", "1")
    page.get_by_role("textbox", name="Card 1: words").fill("a red ball rolls to the right")
    page.get_by_role("button", name="Add a card").click()
    page.keyboard.type("a blue cube falls to the floor")  # in the new card
    flag = page.get_by_role("slider", name="Card 2 begins")
    flag.focus()
    before = float(flag.get_attribute("aria-valuenow"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert float(flag.get_attribute("aria-valuenow")) == pytest.approx(before + 2 / 16, abs=2e-3)
    box, lane = flag.bounding_box(), page.locator(".lane").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(lane["x"] + 0.375 * lane["width"], box["y"] + 4, steps=4)
    page.mouse.up()
    assert float(flag.get_attribute("aria-valuenow")) == pytest.approx(0.375, abs=1e-3)
    page.get_by_label("Card 3: picture").set_input_files(
        {"name": "last.png", "mimeType": "image/png", "buffer": picture()}
    )
    page.get_by_role("listitem", name="Card 3").get_by_label("New shot").check()
    page.get_by_role("listitem", name="Card 3").get_by_role("button", name="Earlier").click()
    expect(page.get_by_role("textbox", name="Card 3: words")).to_have_value("a blue cube falls to the floor")
    page.click("#fine summary")
    page.fill("#steps", "2")
    come(page, made := sent(page, lambda: page.keyboard.press("Control+Enter")))
    assert made["worldline"]["edit"] == "storyboard"
    assert made["prompt"] == "a red ball rolls to the right; a blue cube falls to the floor"
    assert made["seconds"] == "1"


# ---- from a video to another ---------------------------------------------------------------------


def remix(page: Any) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a green ball rolls to the right")
    page.get_by_role("slider", name="How much changes").fill("0.5")


def extend(page: Any) -> None:
    page.get_by_label("Seconds after its end").fill("0.25")
    page.get_by_label("Seconds before it begins").fill("0.25")


def loop(page: Any) -> None:
    page.get_by_label("Seconds that are added").fill("0.25")


def blend(page: Any) -> None:
    page.get_by_role("radio", name="a small yellow cube jumps").first.check()
    page.get_by_label("Seconds of the transition").fill("0.25")


def recut(page: Any) -> None:
    """Two stretches of four and three frames, a frame between them left out, the second one first."""
    head = page.get_by_role("slider", name="Playhead")
    head.press("Home")
    for _ in range(5):
        head.press("ArrowRight")
    page.get_by_role("button", name="Split at the playhead").click()
    page.get_by_role("slider", name="Stretch 1 ends").press("ArrowLeft")
    page.get_by_role("slider", name="Stretch 2 ends").press("ArrowLeft")
    page.get_by_role("button", name="Sooner stretch 2").click()
    assert page.locator(".stretches li span").all_inner_texts() == ["0.31 s to 0.5 s", "0 s to 0.25 s"]
    page.get_by_role("button", name="Play the cut").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_label("Seconds made anew around a cut").fill("0")


@pytest.mark.parametrize(
    ("button", "fill", "frames"),
    [
        ("Remix", remix, FRAMES), ("Extend", extend, FRAMES + 8), ("Loop", loop, FRAMES + 4),
        ("Blend", blend, 2 * FRAMES - 4), ("Re-cut", recut, 7),
    ],
)  # fmt: skip
def test_every_verb(
    page: Any, api: Api, finished: tuple[str, str], button: str, fill: Callable[[Any], None], frames: int
) -> None:
    page.click(f"[data-id={finished[0]}] .open")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="a red ball rolls to the right")).to_be_focused()
    played(page, "#viewer video")
    dialog.get_by_role("button", name=button, exact=True).click()
    fill(page)
    dialog.get_by_text("Finer settings").click()
    dialog.get_by_label("Steps").fill("2")
    made = sent(page, dialog.locator("button[type=submit]").click)
    expect(dialog).to_be_hidden()
    expect(page.locator(f"[data-id={made['id']}] .open")).to_be_focused()
    come(page, made)
    assert made["worldline"]["edit"] == button.lower().replace("-", "")
    assert made["worldline"]["frames"] == frames
    assert set(made["worldline"]["made_from"]) <= set(finished)
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="a red ball rolls to the right").click()  # out of which it was made
    expect(dialog.get_by_role("heading", name="a red ball rolls to the right")).to_be_visible()


def test_a_card_that_is_dropped_on_another_is_blended_into_it(page: Any, finished: tuple[str, str]) -> None:
    first, second = (page.locator(f"[data-id={name}]") for name in finished)
    expect(first).to_have_attribute("draggable", "true")
    # A pointer's drag is the browser's own, and on a busy machine it may lose its end: its events are what is ours.
    held = page.evaluate_handle("() => new DataTransfer()")
    for card, happens in ((first, "dragstart"), (second, "dragover"), (second, "drop")):
        card.dispatch_event(happens, {"dataTransfer": held})
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Blend")).to_be_visible()
    expect(dialog.locator(f"input[value={finished[1]}]")).to_be_checked()


def test_a_mistake_is_told_in_the_servers_words_where_it_was_made(page: Any, api: Api, finished: Any) -> None:
    ask(page, "a ball")
    page.fill("#size", "5000x64")
    page.click("#make")
    expected = api.client.post("/videos", json={"prompt": "a ball", "size": "5000x64"}).json()["error"]["message"]
    expect(page.locator("#refused")).to_have_text(expected)
    expect(page.locator("#size")).to_be_focused()
    assert page.get_attribute("#size", "aria-invalid") == "true"
    page.click(f"[data-id={finished[0]}] .open")
    page.get_by_role("dialog").get_by_role("button", name="Blend").click()
    page.get_by_role("dialog").locator("button[type=submit]").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text("second is missing: the clip that ends")


def test_what_others_make_and_delete_is_seen(page: Any, api: Api) -> None:
    name = api.create("a pink cone", num_frames=5)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it looks at once, not in seconds
    page.wait_for_selector(f".card[data-id={name}][data-status=completed]")
    api.client.delete(f"/videos/{name}")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator(f"[data-id={name}]")).to_have_count(0)


# ---- for everyone --------------------------------------------------------------------------------


def test_everything_is_reached_by_keyboard(page: Any, api: Api, finished: Any) -> None:
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.className"))

    def tab_to(wanted: str, most: int = 80) -> None:
        for _ in range(most):
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", wanted):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{wanted} is not reached; the focus is on {focused()}")

    page.keyboard.press("Tab")
    assert focused() == "skip"
    page.keyboard.press("Enter")
    tab_to("#prompt", 1)
    page.keyboard.type("a green cone spins")
    tab_to("#shapes input")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#size")).to_have_value("80x64")
    tab_to("#seconds")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#seconds")).to_have_value("0.75")
    tab_to("#fine summary")
    page.keyboard.press("Enter")
    tab_to("#steps")
    page.keyboard.type("2")
    tab_to("#make")
    come(page, made := sent(page, lambda: page.keyboard.press("Enter")))
    expect(page.locator("#stage .words")).to_have_text("a green cone spins")
    assert (made["size"], made["seconds"]) == ("80x64", "0.75")
    tab_to(f"[data-id={made['id']}] .open", 40)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))"
        )
    tab_to("[data-act=extend]")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("textbox", name="Prompt")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog.get_by_role("button", name="Extend")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(f"[data-id={made['id']}] .open")).to_be_focused()


@pytest.mark.parametrize(("scheme", "viewport"), [("light", WIDE), ("dark", WIDE), ("light", NARROW)])
def test_no_rule_of_accessibility_is_broken(
    browser: Any, url: str, finished: tuple[str, str], scheme: str, viewport: dict[str, int]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(where: str) -> None:
        found = axe.run(page).response["violations"]
        lines = [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
        assert lines == [], (where, lines)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], where

    with opened(browser, url, color_scheme=scheme, viewport=viewport, reduced_motion="reduce") as page:
        page.wait_for_selector("html[data-ready]")
        page.wait_for_selector("#stage video:not([hidden])")
        assert page.eval_on_selector("#stage video", "video => video.paused")  # nothing moves unasked
        light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (int(re.findall(r"\d+", light)[0]) > 128) is (scheme == "light")
        check("home")
        page.click("#fine summary")
        page.get_by_role("radio", name="Storyboard").check()
        check("storyboard")
        page.click(f"[data-id={finished[0]}] .open")
        page.wait_for_selector("#viewer video:not([hidden])")
        check("viewer")
        for verb in ("recut", "blend"):
            page.click(f"#viewer [data-act={verb}]")
            check(verb)
            page.keyboard.press("Escape")


def test_the_colours_that_were_chosen_stay(browser: Any, url: str) -> None:
    with opened(browser, url, color_scheme="light") as page:
        for name in ("light", "dark"):
            page.get_by_role("button", name="Theme").click()
            expect(page.get_by_role("button", name="Theme")).to_have_text(f"Theme: {name}")
        page.reload()
        expect(page.get_by_role("button", name="Theme")).to_have_text("Theme: dark")
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_a_server_with_keys_is_used_with_one(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path, keys="a-key-of-the-test another-key") as server:
        made = server.finished(size="64x64", num_frames=5)
        with opened(browser, server.url) as page:
            dialog = page.get_by_role("dialog")
            expect(dialog.get_by_label("API key")).to_be_focused()
            page.keyboard.type("a-wrong-key")
            page.keyboard.press("Enter")
            expect(dialog.get_by_role("alert")).to_have_text("no valid API key: send Authorization: Bearer KEY")
            dialog.get_by_label("API key").fill("a-key-of-the-test")
            page.keyboard.press("Enter")
            expect(dialog).to_be_hidden()
            page.click(f"[data-id={made['id']}] .open")  # events and files come with the key too
            until(page, "document.querySelector('#viewer video').readyState >= 2")
            page.keyboard.press("Escape")
            assert (
                page.evaluate("Object.values(localStorage).join() + document.cookie + location.href")
                == server.url + "/"
            )
            page.get_by_role("button", name="Forget key").click()
            expect(dialog.get_by_label("API key")).to_be_visible()
            assert page.evaluate("sessionStorage.length") == 0
