// The screen beside the form: what is being made, large, and then how it came out.

import * as api from "./api.js";
import { $, h, live, put, ready, state, still, trouble, words } from "./dom.js";
import { url } from "./media.js";
import { videos } from "./videos.js";

let shown = null; // id
const part = {};

/** Wires the stage; `open(id)` shows a video in the dialog. */
export function stage(open) {
  part.hint = h("p", { class: "hint" }, "What you ask for is painted here.");
  part.image = h("img", { alt: "", hidden: true });
  part.video = h("video", { muted: true, loop: true, playsInline: true, hidden: true, tabIndex: -1, "aria-hidden": "true" });
  part.screen = h("div", { class: "screen" }, part.hint, part.image, part.video);
  part.bar = h("div", { class: "line", role: "progressbar", "aria-label": "Progress of the video in work", "aria-valuemin": 0, "aria-valuemax": 100, hidden: true });
  part.words = h("p", { class: "words" });
  part.state = h("p", { class: "state" });
  part.open = h("button", { type: "button", onclick: () => open(shown) }, "Open");
  part.pause = h("button", { type: "button", onclick: toggle }, "Pause");
  part.cancel = h("button", { type: "button", onclick: () => api.cancel(shown).then((video) => videos.take(video), trouble) }, "Cancel");
  part.doing = h("div", { class: "row", hidden: true }, part.open, part.pause, part.cancel);
  $("stage").append(part.screen, part.bar, part.words, part.state, part.doing);
  videos.addEventListener("added", ({ detail }) => choose(detail.video.id));
  videos.addEventListener("change", ({ detail }) => (detail.video.id === shown ? draw(detail.video) : pick()));
  videos.addEventListener("gone", ({ detail }) => detail.id === shown && ((shown = null), pick(), draw(videos.get(shown))));
  videos.addEventListener("page", pick);
}

/** What is in work before what rests; what has come out stays until something else begins. */
function pick() {
  const held = videos.get(shown);
  if (held && live(held)) return;
  const next = videos.all.filter((video) => video.status === "in_progress").at(-1) ?? (held ? null : videos.all.find(ready));
  if (next) choose(next.id);
}

function choose(id) {
  if (id === shown) return;
  shown = id;
  part.image.hidden = part.video.hidden = true;
  part.image.removeAttribute("src");
  draw(videos.get(id));
}

function draw(video) {
  part.doing.hidden = !video;
  part.bar.hidden = !video || !live(video);
  part.hint.hidden = Boolean(video);
  put(part.words, video ? words(video) : "");
  put(part.state, video ? state(video) : "");
  $("stage").dataset.status = video?.status ?? "";
  if (!video) {
    part.image.hidden = part.video.hidden = true;
    return;
  }
  part.screen.style.aspectRatio = `${video.worldline.width} / ${video.worldline.height}`;
  part.bar.setAttribute("aria-valuenow", video.progress);
  part.bar.setAttribute("aria-valuetext", `${video.progress} percent, ${state(video)}`);
  part.bar.style.setProperty("--done", `${video.progress}%`);
  part.cancel.hidden = !live(video);
  part.pause.hidden = !ready(video);
  if (live(video)) {
    part.video.hidden = true;
    part.image.hidden = !video.preview;
    if (video.preview && part.image.src !== video.preview) part.image.src = video.preview;
  } else if (ready(video)) {
    play(video.id);
  }
}

async function play(id) {
  try {
    const source = await url(id, "video");
    if (id !== shown) return;
    if (part.video.src !== source) part.video.src = source;
    part.video.hidden = false;
    if (still.matches) part.video.currentTime = 0;
    else await part.video.play();
    part.image.hidden = true;
  } catch (error) {
    if (error.name !== "AbortError" && error.status !== 404) trouble(error);
  }
  put(part.pause, part.video.paused ? "Play" : "Pause");
}

function toggle() {
  if (part.video.paused) part.video.play().catch(trouble);
  else part.video.pause();
  put(part.pause, part.video.paused ? "Play" : "Pause");
}
