// Studio: begins, asks for a key where the server wants one, and keeps to the colours that were chosen.

import * as api from "./api.js";
import { compose } from "./composer.js";
import { $, h, trouble } from "./dom.js";
import { fill } from "./gallery.js";
import { stage } from "./stage.js";
import { videos } from "./videos.js";
import { open, view } from "./viewer.js";

// ---- the key -------------------------------------------------------------------------------------

/** Asks for a key until one is given, or the dialog is left. */
function askForKey(message) {
  const dialog = $("ask");
  const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true, "aria-describedby": "told" });
  const form = h("form", { method: "dialog" },
    h("h2", { id: "ask-title" }, "This server has keys"),
    h("p", { id: "told", class: "refused", role: "alert" }, api.keyed() ? message : ""),
    h("div", { class: "field" }, h("label", { for: "key" }, "API key"), input,
      h("span", { class: "soft" }, "Kept in this tab only, until it is closed.")),
    h("div", { class: "row" }, h("button", { class: "primary", type: "submit" }, "Continue")));
  dialog.replaceChildren(form);
  dialog.returnValue = "";
  return new Promise((resolve) => {
    let given = false;
    form.addEventListener("submit", () => (given = input.value.trim()));
    dialog.addEventListener("close", () => {
      $("forget").hidden = !given;
      resolve(given);
    }, { once: true });
    dialog.showModal();
    input.focus();
  });
}

$("forget").addEventListener("click", () => {
  api.forget();
  location.reload();
});

// ---- colours -------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const { dataset } = document.documentElement; // theme.js has set its theme
const tell = () => ($("theme").textContent = `Theme: ${dataset.theme}`);

$("theme").addEventListener("click", () => {
  dataset.theme = THEMES[(THEMES.indexOf(dataset.theme) + 1) % THEMES.length];
  localStorage.setItem("worldline-theme", dataset.theme);
  tell();
});
tell();

// ---- begin ---------------------------------------------------------------------------------------

async function begin() {
  api.onLocked(askForKey);
  $("base").textContent = `${location.origin}/v1`;
  $("forget").hidden = !api.keyed();
  const [card] = (await api.models()).data;
  $("model").textContent = card.id;
  compose(card);
  fill(open);
  stage(open);
  view();
  let told = false;
  videos.addEventListener("trouble", ({ detail }) => told || ((told = true), trouble(detail.error)));
  videos.addEventListener("page", () => (told = false));
  await videos.start();
  dataset.ready = "";
}

begin().catch((error) => trouble(error, () => location.reload()));
