// Makes elements, and words for people. Text is always set as text: nothing that was written elsewhere becomes markup.

/** An element with properties, attributes (`aria-*`, `role`, `for`), listeners (`onclick`), data and children. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "class") element.className = value;
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Sets a text only where it changes, so that screen readers are not told the same again. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Says a line to those who listen to the page. */
export function say(text) {
  const place = $("said");
  place.textContent = "";
  requestAnimationFrame(() => (place.textContent = text));
}

let quiet;
/** Shows what went wrong outside any form, in the server's words; for good where there is a way to try `again`. */
export function trouble(error, again) {
  const place = $("trouble");
  place.hidden = false;
  place.replaceChildren(error.message, again ? h("button", { type: "button", onclick: again }, "Try again") : "");
  clearTimeout(quiet);
  if (!again) quiet = setTimeout(() => (place.hidden = true), 10_000);
}

export const still = matchMedia("(prefers-reduced-motion: reduce)");

export const round = (value, digits = 3) => Number(value.toFixed(digits));

export const span = (seconds) => `${round(seconds, 2)} s`;

/** "in 3 s", "in 2 min": how long something still takes. */
export function left(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return `${Math.max(1, Math.ceil(seconds))} s left`;
  return `${Math.ceil(seconds / 60)} min left`;
}

/** How long ago a unix time was. */
export function ago(unix) {
  const seconds = Date.now() / 1000 - unix;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(1000 * unix).toLocaleDateString();
}

const VERBS = {
  generate: "from words", animate: "from a picture", interpolate: "between two pictures", storyboard: "a storyboard",
  remix: "a remix", extend: "extended", loop: "a loop", blend: "a blend", recut: "re-cut", inpaint: "painted over",
  outpaint: "widened",
};
export const made = (video) => VERBS[video.worldline.edit] ?? video.worldline.edit;

export const live = (video) => video.status === "queued" || video.status === "in_progress";

export const expired = (video) => video.expires_at !== null && 1000 * video.expires_at <= Date.now();

export const ready = (video) => video.status === "completed" && !expired(video);

const plain = (video) => video.worldline.edit === "generate";

/** A size as people write it. */
export const times = (size) => size.replace("x", "×");

/** Where a video stands, in a few words. */
export function state(video) {
  const { step, steps, seconds_left } = video.worldline;
  if (video.status === "queued") return "Waiting";
  if (video.status === "in_progress") {
    const time = left(seconds_left);
    return steps ? `Step ${step} of ${steps}${time && ` · ${time}`}` : "Beginning";
  }
  if (video.status === "failed") return video.error.code === "cancelled" ? "Cancelled" : `Failed: ${video.error.message}`;
  return expired(video) ? "Expired: its files are gone" : [span(Number(video.seconds)), times(video.size), plain(video) ? null : made(video)].filter(Boolean).join(" · ");
}

/** Seconds that a video plays: its frames, each for as long as one lasts. */
export const length = (video) => video.worldline.frames / video.worldline.fps;

export const words = (video) => video.prompt || "without words";
