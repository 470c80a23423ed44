// The form for a new video: words, pictures or a storyboard, and how large, long and random it is to be.

import * as api from "./api.js";
import { Board } from "./board.js";
import { $, h, round, say } from "./dom.js";
import { videos } from "./videos.js";

const FIELDS = { // where a mistake lies, by the name that the server has for it
  prompt: "prompt", size: "size", seconds: "seconds", num_frames: "seconds", seed: "seed", num_inference_steps: "steps",
  guidance_scale: "guidance", negative_prompt: "negative", input_reference: "first", last_reference: "last", loop: "loop",
};
const SHOWN = 4; // examples
const KINDS = ["image/png", "image/jpeg", "image/webp"];

const pictures = { input_reference: null, last_reference: null };
const lengths = {};
let board, defaults, shapes;
let unasked = true; // the size is still the one that was proposed

const mode = () => $("composer").elements.mode.value;
export const number = (text) => (/^\d+(\.\d+)?$/.test(text) && Number.isSafeInteger(Math.round(text)) ? Number(text) : text);

/** Wires the form; `card` is what the API says of the model. */
export function compose(card) {
  ({ defaults, shapes } = card);
  offerShapes(card);
  offerExamples(card.examples);
  const step = round(card.step / defaults.fps);
  Object.assign($("seconds"), { step: "any", min: step, max: card.limits.seconds, value: defaults.seconds });
  nudge($("seconds"), step);
  lengths.prompt = defaults.seconds;
  lengths.board = String(2 * defaults.seconds);
  $("steps").placeholder = defaults.steps;
  $("guidance").placeholder = defaults.guidance_scale;
  if (card.pictures) $("first").labels[0].querySelector("span").textContent = "this model begins with one";
  const lasting = () => Number(mode() === "board" ? $("seconds").value : lengths.board) || 1;
  board = new Board($("board"), lasting, 1 / defaults.fps);
  for (const radio of $("composer").elements.mode) radio.addEventListener("change", changed);
  $("seconds").addEventListener("input", () => board.draw());
  $("size").addEventListener("input", () => (choose($("size").value), (unasked = false)));
  $("rewrite").addEventListener("click", rewrite);
  $("undo").addEventListener("click", undo);
  $("prompt").addEventListener("input", () => ($("undo").hidden = true));
  for (const slot of document.querySelectorAll(".slot")) wire(slot);
  takeDrops();
  $("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
  $("composer").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("composer").requestSubmit();
  });
}

/** A whole number of steps up and down by arrow keys, where any number may be typed. */
function nudge(input, step) {
  input.addEventListener("keydown", (event) => {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    input.value = round(Math.max(step, (Math.round(Number(input.value) / step) + way) * step));
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

function offerShapes({ shapes, limits, side }) {
  for (const { aspect, size } of shapes) {
    const [width, height] = size.split("x").map(Number);
    const glyph = h("i", { class: "glyph" });
    const unit = 18 / Math.max(width, height);
    glyph.style.width = `${width * unit}px`;
    glyph.style.height = `${height * unit}px`;
    const radio = h("input", { type: "radio", name: "shape", value: size });
    radio.addEventListener("change", () => (($("size").value = size), (unasked = false)));
    $("shapes").append(h("label", { title: size }, radio, glyph, h("span", {}, aspect)));
    for (const factor of [1, 1.5, 2, 3]) {
      const [wide, high] = [width, height].map((n) => Math.round((n * factor) / side) * side);
      if (wide * high <= limits.pixels) $("sizes").append(h("option", { value: `${wide}x${high}` }));
    }
  }
  propose(`${defaults.width}x${defaults.height}`);
}

function propose(size) {
  $("size").value = size;
  choose(size);
}

/** Marks the shape of a size, if it is one. */
function choose(size) {
  for (const radio of $("shapes").querySelectorAll("input")) radio.checked = radio.value === size;
}

function offerExamples(examples) {
  const shown = [...examples].sort(() => Math.random() - 0.5).slice(0, SHOWN);
  $("examples").hidden = !shown.length;
  $("examples").append(...shown.map((text) => h("button", { type: "button", onclick: () => write(text) }, text)));
}

function write(text) {
  $("prompt").value = text;
  $("undo").hidden = true;
  $("note").textContent = "";
  $("prompt").focus();
}

function changed() {
  const to = mode();
  lengths[to === "board" ? "prompt" : "board"] = $("seconds").value;
  $("seconds").value = lengths[to];
  $("single").hidden = to === "board";
  $("board").hidden = to !== "board";
  $("looped").hidden = to === "board";
  complain(null);
  board.draw();
}

// ---- the prompt, rewritten ---------------------------------------------------------------------

let stated = "";

async function rewrite() {
  complain(null);
  try {
    const told = await api.rewrite($("prompt").value);
    const same = told.prompt === told.rewritten_from;
    const done = same ? "It is in the words of the model's training already." : "Rewritten in the words of the model's training.";
    $("note").textContent = told.note || done;
    if (same) return;
    stated = told.rewritten_from;
    $("prompt").value = told.prompt;
    $("undo").hidden = false;
  } catch (error) {
    complain(error);
  }
}

function undo() {
  write(stated);
}

// ---- pictures ----------------------------------------------------------------------------------

function wire(slot) {
  const input = slot.querySelector("input");
  input.addEventListener("change", () => input.files[0] && place(slot, input.files[0]));
}

async function place(slot, file) {
  const { name } = slot.dataset;
  clear(slot);
  pictures[name] = file;
  const shown = URL.createObjectURL(file);
  const image = h("img", { src: shown, alt: "" });
  const title = slot.querySelector("b").textContent;
  const away = h("button", { type: "button", class: "plain", "aria-label": `Remove the ${title.toLowerCase()}` }, "Remove");
  away.addEventListener("click", () => (clear(slot), slot.querySelector("input").focus(), say(`${title} removed`)));
  slot.classList.add("full");
  slot.prepend(image);
  slot.append(away);
  limit();
  say(`${title}: ${file.name}`);
  try {
    await image.decode();
    if (name === "input_reference" && unasked) propose(nearest(image.naturalWidth / image.naturalHeight));
  } catch {
    // The server says what is wrong with it.
  } finally {
    URL.revokeObjectURL(shown);
  }
}

/** The size whose proportions are closest. */
function nearest(ratio) {
  const away = ({ size }) => Math.abs(Math.log(size.split("x").reduce((a, b) => a / b) / ratio));
  return [...shapes].sort((a, b) => away(a) - away(b))[0].size;
}

function clear(slot) {
  pictures[slot.dataset.name] = null;
  slot.classList.remove("full");
  slot.querySelector("img")?.remove();
  slot.querySelector("button")?.remove();
  slot.querySelector("input").value = "";
  limit();
}

/** A last picture and a loop exclude each other. */
function limit() {
  $("loop").disabled = pictures.last_reference !== null;
  $("loop").checked &&= !$("loop").disabled;
}

/** Pictures that are dropped anywhere on the page. */
function takeDrops() {
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!carries(event)) return;
    event.preventDefault();
    const file = [...event.dataTransfer.files].find(({ type }) => KINDS.includes(type)) ?? event.dataTransfer.files[0];
    if (file) drop(file, event.target);
  });
}

function drop(file, target) {
  if (document.querySelector("dialog[open]")) return;
  if (mode() === "board") return board.drop(file, target);
  const free = pictures.input_reference && !pictures.last_reference ? "last_reference" : "input_reference";
  place(target.closest?.(".slot") ?? document.querySelector(`.slot[data-name=${free}]`), file);
}

// ---- asking ------------------------------------------------------------------------------------

function asked() {
  const shared = {
    size: $("size").value.trim(), seconds: $("seconds").value, seed: number($("seed").value.trim()),
    num_inference_steps: number($("steps").value), guidance_scale: number($("guidance").value),
    negative_prompt: $("negative").value,
  };
  if (mode() === "board") return { ...shared, ...board.fields() };
  return { ...shared, prompt: $("prompt").value, loop: $("loop").checked || undefined, ...pictures };
}

async function send() {
  if ($("make").disabled) return;
  complain(null);
  $("make").disabled = true;
  try {
    const video = await api.create(asked());
    say("Accepted");
    videos.add(video);
  } catch (error) {
    complain(error);
  } finally {
    $("make").disabled = false;
  }
}

/** Shows a mistake beside the button, and goes to the field that it names. */
function complain(error) {
  for (const marked of $("composer").querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  $("refused").textContent = error ? error.message : "";
  const field = error && $(FIELDS[error.param?.split(".")[0]]);
  if (!field || field.closest("[hidden]")) return;
  if ($("fine").contains(field)) $("fine").open = true;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

/** Fills the form with what a video was made of. */
export function again(video) {
  $("composer").elements.mode.value = "prompt";
  changed();
  write(video.worldline.rewritten_from ?? video.prompt ?? "");
  propose(video.size);
  unasked = false;
  $("seconds").value = round((video.worldline.frames - 1) / video.worldline.fps) || "";
  $("seed").value = video.worldline.seed;
  $("prompt").scrollIntoView({ block: "center" });
}
