// The dialog of one video: it plays, says how it was made, and has everything that can be done with it.

import * as api from "./api.js";
import { again } from "./composer.js";
import { $, expired, h, live, made, put, ready, round, span, state, still, times, trouble, words } from "./dom.js";
import { reach } from "./gallery.js";
import { download, url } from "./media.js";
import { titles, verbForm, verbs } from "./verbs.js";
import { videos } from "./videos.js";

const dialog = $("viewer");
const part = {};
let shown = null; // id
let form = null; // of a verb

/** Wires the dialog. */
export function view() {
  part.image = h("img", { alt: "", hidden: true });
  part.video = h("video", { controls: true, loop: true, playsInline: true, hidden: true });
  part.screen = h("div", { class: "screen" }, part.image, part.video);
  part.bar = h("div", { class: "line", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 });
  part.below = h("div", { class: "below" });
  part.title = h("h2", { id: "title", class: "words", tabIndex: -1 });
  part.state = h("p", { class: "state" });
  part.side = h("div", { class: "side" });
  part.newer = h("button", { type: "button", class: "plain", onclick: () => step(-1) }, "Newer");
  part.older = h("button", { type: "button", class: "plain", onclick: () => step(1) }, "Older");
  const close = h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close");
  dialog.append(
    h("div", { class: "bar" }, part.newer, part.older, h("span", { class: "grow" }), close),
    h("div", { class: "watch" }, part.screen, part.bar, part.below),
    h("div", { class: "about" }, part.title, part.state, part.side));
  dialog.addEventListener("cancel", (event) => {
    if (!form) return;
    event.preventDefault(); // first back from the verb, then out
    info(true);
  });
  dialog.addEventListener("close", () => {
    leave();
    part.video.pause();
    part.video.removeAttribute("src");
    shown = null;
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  videos.addEventListener("change", ({ detail }) => detail.video.id === shown && changed(detail.video, detail.before));
  videos.addEventListener("gone", ({ detail }) => detail.id === shown && dialog.close());
}

/** Shows a video, or one that is not held and only named; with a verb, its form. */
export async function open(id, verb, second) {
  try {
    if (!videos.get(id)) videos.take(await api.get(id));
  } catch (error) {
    return trouble(error);
  }
  shown = id;
  const video = videos.get(id);
  part.video.hidden = part.image.hidden = true;
  if (!dialog.open) dialog.showModal();
  draw(video);
  info();
  if (verb && ready(video)) act(verb, { second });
  else part.title.focus();
}

function step(way) {
  const order = videos.all;
  const next = order[order.findIndex(({ id }) => id === shown) + way];
  if (next) open(next.id);
}

function changed(video, before) {
  draw(video);
  if (form || before?.status === video.status) return;
  const focused = part.side.contains(document.activeElement);
  info();
  if (focused) part.title.focus();
}

function draw(video) {
  const { width, height } = video.worldline;
  const index = videos.all.findIndex(({ id }) => id === shown);
  part.newer.disabled = index === 0;
  part.older.disabled = index === videos.held.size - 1;
  put(part.title, words(video));
  put(part.state, state(video));
  part.screen.style.aspectRatio = `${width} / ${height}`;
  part.screen.style.setProperty("--ratio", width / height);
  part.bar.hidden = !live(video);
  part.bar.setAttribute("aria-valuenow", video.progress);
  part.bar.style.setProperty("--done", `${video.progress}%`);
  part.image.hidden = !live(video) || !video.preview;
  if (!part.image.hidden) part.image.src = video.preview;
  if (ready(video) && part.video.hidden) play(video.id);
}

async function play(id) {
  try {
    const source = await url(id, "video");
    if (id !== shown) return;
    part.video.src = source;
    part.video.setAttribute("aria-label", `Video: ${words(videos.get(id))}`);
    part.video.hidden = false;
    if (!still.matches) await part.video.play();
  } catch (error) {
    if (error.name !== "AbortError") trouble(error);
  }
}

// ---- what it is, and what can be done with it ----------------------------------------------------

function leave() {
  form?.leave();
  form = null;
  part.below.replaceChildren();
}

function info(focus = false) {
  const video = videos.get(shown);
  const last = form?.name;
  leave();
  const button = (text, act, name = "") => h("button", { type: "button", onclick: act, data: { act: name } }, text);
  const doing = h("div", { class: "actions" });
  if (ready(video)) {
    doing.append(...verbs.map((verb) => button(titles[verb], () => act(verb), verb)));
    doing.append(button("Download", () => download(video).catch(trouble)));
  }
  doing.append(button("Use again", () => (dialog.close(), again(video))));
  if (live(video)) doing.append(button("Cancel", () => api.cancel(video.id).then((told) => videos.take(told), trouble)));
  doing.append(button("Delete", () => sure(video), "delete"));
  part.side.replaceChildren(doing, facts(video));
  if (focus) (part.side.querySelector(`[data-act=${last}]`) ?? part.title).focus();
}

function facts(video) {
  const { seed, frames, fps, made_from, rewritten_from } = video.worldline;
  const from = made_from.map((id) => h("button", { type: "button", class: "link", onclick: () => open(id) },
    videos.get(id) ? words(videos.get(id)) : id));
  const rows = [
    ["Made as", made(video)],
    ["Out of", from.length ? from : null],
    ["Asked for", rewritten_from],
    ["Size", times(video.size)],
    ["Length", `${span(Number(video.seconds))}, ${frames} frames at ${round(fps, 2)} a second`],
    ["Seed", String(seed)],
    ["Model", video.model],
    ["Asked", new Date(1000 * video.created_at).toLocaleString()],
    ["Files until", ready(video) && video.expires_at ? new Date(1000 * video.expires_at).toLocaleString() : null],
    ["Why", video.error?.message],
    ["Id", h("code", {}, video.id)],
  ];
  const held = rows.filter(([, value]) => value);
  return h("dl", { class: "facts" }, ...held.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function act(name, about) {
  const video = videos.get(shown);
  leave();
  const back = () => info(true);
  const held = verbForm(name, video, part.video, about, done, back);
  form = { ...held, name };
  part.side.replaceChildren(held.form);
  if (held.below) part.below.replaceChildren(held.below);
  held.first.focus();
}

function done(video) {
  leave();
  dialog.close();
  videos.add(video);
  reach(video.id);
}

function sure(video) {
  const no = h("button", { type: "button", onclick: () => info(true) }, "Keep it");
  const yes = h("button", { type: "button", class: "danger", onclick: () => away(video) }, "Delete");
  form = { name: "delete", leave: () => {} };
  part.side.replaceChildren(h("p", { role: "alert" }, expired(video) ? "Delete what is left of this video?" : "Delete this video for good?"),
    h("div", { class: "row" }, yes, no));
  no.focus();
}

async function away(video) {
  try {
    await api.remove(video.id);
    reach(video.id); // whose neighbour is focused when it goes
    videos.drop(video.id);
  } catch (error) {
    trouble(error);
  }
}
