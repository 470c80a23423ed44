// Every video as a card, the newest first. It plays while it is pointed at or focused.

import * as api from "./api.js";
import { $, ago, h, live, put, ready, say, state, still, trouble, words } from "./dom.js";
import { download, dropped, show, url } from "./media.js";
import { videos } from "./videos.js";

const cards = new Map();
let open = () => {};

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) picture(target.card);
}, { rootMargin: "300px" });

/** Fills the gallery and keeps it so; `opened(id, verb)` shows one. */
export function fill(opened) {
  open = opened;
  videos.addEventListener("change", ({ detail }) => change(detail.video, detail.before));
  videos.addEventListener("gone", ({ detail }) => gone(detail.id));
  videos.addEventListener("page", () => {
    count();
    for (const card of cards.values()) update(card, videos.get(card.id)); // time passes
  });
  $("older").addEventListener("click", () => videos.older().catch(trouble));
}

function count() {
  const total = videos.held.size;
  put($("count"), total ? `${total}${videos.more ? " and older ones" : ""}` : "");
  $("empty").hidden = total > 0;
  $("older").hidden = !videos.more;
}

function change(video, before) {
  let card = cards.get(video.id);
  if (!card) {
    card = build(video);
    cards.set(video.id, card);
    const next = videos.all[videos.all.findIndex(({ id }) => id === video.id) + 1];
    $("gallery").insertBefore(card.element, cards.get(next?.id)?.element ?? null);
    seen.observe(card.element);
    count();
  }
  update(card, video);
  if (before && live(before) && !live(video)) {
    say(`${video.status === "completed" ? "Finished" : state(video)}: ${words(video)}`);
  }
}

function gone(id) {
  const card = cards.get(id);
  if (!card) return;
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  const focused = card.element.contains(document.activeElement);
  seen.unobserve(card.element);
  card.element.remove();
  cards.delete(id);
  dropped(id);
  count();
  if (focused) (next?.querySelector("button") ?? $("prompt")).focus();
}

/** Goes to a card, as after a dialog that was about it. */
export function reach(id) {
  cards.get(id)?.button.focus();
}

function build(video) {
  const card = { id: video.id };
  const act = (label, doing) => h("button", { type: "button", class: "plain", "aria-label": `${label}: ${words(video)}`, onclick: doing }, label);
  card.image = h("img", { alt: "", draggable: false });
  card.video = h("video", { muted: true, loop: true, playsInline: true, preload: "none", hidden: true, tabIndex: -1, "aria-hidden": "true" });
  card.frame = h("span", { class: "frame" }, card.image, card.video);
  card.button = h("button", { type: "button", class: "open", onclick: () => open(card.id) }, card.frame);
  card.bar = h("div", { class: "line", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 });
  card.words = h("p", { class: "words" }, words(video));
  card.state = h("p", { class: "state" });
  card.remix = act("Remix", () => open(card.id, "remix"));
  card.save = act("Download", () => download(videos.get(card.id)).catch(trouble));
  card.cancel = act("Cancel", () => api.cancel(card.id).then((told) => videos.take(told), trouble));
  card.away = act("Delete", () => api.remove(card.id).then(() => videos.drop(card.id), trouble));
  card.element = h("li", { class: "card", data: { id: video.id } },
    card.button, card.bar, card.words,
    h("div", { class: "foot" }, card.state, h("div", { class: "quick" }, card.remix, card.save, card.cancel, card.away)));
  card.element.card = card;
  for (const [begin, end] of [["pointerenter", "pointerleave"], ["focusin", "focusout"]]) {
    card.element.addEventListener(begin, () => play(card));
    card.element.addEventListener(end, () => pause(card));
  }
  blending(card);
  return card;
}

function update(card, video) {
  const { width, height } = video.worldline;
  const done = ready(video);
  card.frame.style.aspectRatio = `${width} / ${height}`;
  card.element.style.setProperty("--ratio", width / height);
  card.element.dataset.status = video.status;
  put(card.state, done || live(video) ? `${state(video)}${done ? ` · ${ago(video.created_at)}` : ""}` : state(video));
  card.button.setAttribute("aria-label", `Open: ${words(video)}. ${state(video)}`);
  card.bar.hidden = !live(video);
  card.bar.setAttribute("aria-valuenow", video.progress);
  card.bar.style.setProperty("--done", `${video.progress}%`);
  card.cancel.hidden = !live(video);
  card.remix.hidden = card.save.hidden = !done;
  card.away.hidden = live(video) || done;
  card.element.draggable = done;
  if (live(video) && video.preview && card.image.src !== video.preview) card.image.src = video.preview;
  if (done && card.drawn === undefined && card.near) picture(card);
  if (video.status === "failed") card.image.removeAttribute("src");
}

/** The thumbnail, once its card comes near. */
function picture(card) {
  card.near = true;
  if (card.drawn || !ready(videos.get(card.id) ?? { expires_at: null })) return;
  card.drawn = true;
  seen.unobserve(card.element);
  show(card.image, card.id, "thumbnail").catch(() => (card.drawn = undefined));
}

async function play(card) {
  if (still.matches || !ready(videos.get(card.id))) return;
  card.wanted = true;
  try {
    const source = await url(card.id, "video");
    if (!card.wanted) return;
    if (card.video.src !== source) card.video.src = source;
    await card.video.play();
    card.video.hidden = !card.wanted;
  } catch (error) {
    if (error.status && error.status !== 404) trouble(error);
  }
}

function pause(card) {
  if (card.element.matches(":hover") || card.element.contains(document.activeElement)) return;
  card.wanted = false;
  card.video.pause();
  card.video.hidden = true;
}

/** A card that is dropped on another is led into it; by keyboard the same is in the dialog, under Blend. */
function blending(card) {
  const kind = "application/x-worldline-video";
  card.element.addEventListener("dragstart", (event) => event.dataTransfer.setData(kind, card.id));
  card.element.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes(kind) || !ready(videos.get(card.id))) return;
    event.preventDefault();
    card.element.classList.add("over");
  });
  card.element.addEventListener("dragleave", () => card.element.classList.remove("over"));
  card.element.addEventListener("drop", (event) => {
    card.element.classList.remove("over");
    const first = event.dataTransfer.getData(kind);
    if (!first || first === card.id) return;
    event.preventDefault();
    open(first, "blend", card.id);
  });
}
