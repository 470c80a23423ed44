// What can be done with a finished video. Each verb is a few fields and one call of the API.

import * as api from "./api.js";
import { number } from "./composer.js";
import { h, length, ready, round, say, times, words } from "./dom.js";
import { show } from "./media.js";
import { Timeline } from "./timeline.js";
import { videos } from "./videos.js";

let many = 0;

/** A labelled field. */
function field(label, input, hint) {
  input.id = `field-${++many}`;
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint && h("span", { class: "soft" }, hint));
}

const seconds = (value, min = 0) => h("input", { type: "number", min, step: "any", value, inputMode: "decimal" });

/** A slider from 0 to 1, with its ends in words. */
function slider(label, value, least, most) {
  const input = h("input", { type: "range", min: 0, max: 1, step: 0.05, value });
  const place = field(label, input);
  place.append(h("div", { class: "ends soft" }, h("span", {}, least), h("span", {}, most)));
  return [input, place];
}

const VERBS = {
  remix(video) {
    const [strength, place] = slider("How much changes", 0.7, "little", "everything");
    return {
      title: "Remix", hint: "The same video, painted anew under other words.", parts: [place],
      send: (shared) => api.remix(video.id, { ...shared, strength: Number(strength.value) }),
    };
  },
  extend(video) {
    const half = round(Math.max(0.25, length(video) / 2), 2);
    const after = seconds(half), before = seconds(0);
    return {
      title: "Extend", hint: "It goes on, or begins earlier.",
      parts: [h("div", { class: "pair" }, field("Seconds after its end", after), field("Seconds before it begins", before))],
      params: { seconds: after, backward: before },
      send: (shared) => api.extend({
        ...shared, seconds: after.value || "0", backward: number(before.value || "0"), video: { id: video.id },
      }),
    };
  },
  loop(video) {
    const over = seconds(0.5);
    return {
      title: "Loop", hint: "What leads from its end back to its beginning is painted.",
      parts: [field("Seconds that are added", over)], params: { seconds: over },
      send: (shared) => api.edit({ ...shared, edit: "loop", seconds: over.value, video: { id: video.id } }),
    };
  },
  blend(video, player, { second } = {}) {
    const picker = pick(video, second);
    const over = seconds(Math.min(0.5, round(length(video) / 2, 2)));
    const [strength, place] = slider("How freely", 0.8, "cross-fade", "anew");
    return {
      title: "Blend", hint: "This video turns into another of its size.",
      parts: [picker.element, field("Seconds of the transition", over), place],
      params: { seconds: over, second: picker.element },
      send: (shared) => api.edit({
        ...shared, edit: "blend", seconds: over.value, strength: Number(strength.value), video: { id: video.id },
        second: picker.chosen() && { id: picker.chosen() },
      }),
    };
  },
  recut(video, player) {
    let own = false; // somebody chose the seconds
    const join = seconds(0);
    join.addEventListener("input", () => (own = true));
    const timeline = new Timeline(video, player, ({ room }) => own || (join.value = round(Math.min(0.5, room))));
    return {
      title: "Re-cut", hint: "Keep what is marked on the strip; the joins are painted anew.", below: timeline.element, first: timeline.playhead,
      parts: [field("Seconds made anew around a cut", join, "0 for a hard cut")], params: { join },
      send: (shared) => api.edit({
        ...shared, edit: "recut", keep: timeline.keep(), join: number(join.value), video: { id: video.id },
      }),
      leave: () => timeline.stop(),
    };
  },
};

export const verbs = Object.keys(VERBS);
export const titles = { remix: "Remix", recut: "Re-cut", extend: "Extend", loop: "Loop", blend: "Blend" };

/** Finished videos of the same size, one to be chosen. */
function pick(video, second) {
  const others = videos.all.filter((other) => ready(other) && other.size === video.size && other.id !== video.id);
  const name = `second-${++many}`;
  const element = h("fieldset", { class: "pick", tabIndex: -1 }, h("legend", {}, "Into which video"));
  if (!others.length) element.append(h("p", { class: "soft" }, `There is no other finished video of ${times(video.size)} yet.`));
  for (const other of others) {
    const image = h("img", { alt: "" });
    const radio = h("input", { type: "radio", name, value: other.id, checked: other.id === second });
    element.append(h("label", { title: words(other) }, radio, image, h("span", {}, words(other))));
    show(image, other.id, "thumbnail").catch(() => {});
  }
  return { element, chosen: () => element.querySelector("input:checked")?.value };
}

/** The form of a verb: `.below` belongs under the video, `.leave()` is called when it goes; `done(video)`, `back()`. */
export function verbForm(name, video, player, about, done, back) {
  const verb = VERBS[name](video, player, about);
  const prompt = h("textarea", { rows: 4, maxLength: 32_000, value: video.prompt ?? "" });
  const seed = h("input", { inputMode: "numeric", placeholder: "by chance" });
  const steps = h("input", { type: "number", min: 1, max: 1000, placeholder: "the model's own" });
  const refused = h("p", { class: "refused", role: "alert" });
  const go = h("button", { class: "primary", type: "submit" }, verb.title);
  const form = h("form", { class: "verb", noValidate: true, autocomplete: "off" },
    h("h3", {}, verb.title), h("p", { class: "soft" }, verb.hint),
    field("Prompt", prompt), ...verb.parts,
    h("details", {}, h("summary", {}, "Finer settings"), h("div", { class: "pair" }, field("Seed", seed), field("Steps", steps))),
    refused, h("div", { class: "row" }, go, h("button", { type: "button", onclick: back }, "Back")));
  const places = { prompt, seed, num_inference_steps: steps, ...verb.params };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    refused.textContent = "";
    for (const input of Object.values(places)) input.removeAttribute("aria-invalid");
    go.disabled = true;
    const shared = { prompt: prompt.value, seed: number(seed.value.trim()), num_inference_steps: number(steps.value) };
    try {
      const made = await verb.send(shared);
      say("Accepted");
      done(made);
    } catch (error) {
      refused.textContent = error.message;
      const place = places[error.param?.split(".")[0]];
      place?.setAttribute("aria-invalid", "true");
      place?.focus();
    } finally {
      go.disabled = false;
    }
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return { form, first: verb.first ?? prompt, below: verb.below, leave: verb.leave ?? (() => {}) };
}
