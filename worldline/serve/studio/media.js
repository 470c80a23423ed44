// Files of videos as object URLs: fetched once, given up when many others came since.

import * as api from "./api.js";

const HELD = 32;
const held = new Map(); // "id/variant" -> promise of a URL, the last used at the end

/** A URL of a video's file that stays good until many others were asked for. */
export function url(id, variant) {
  const name = `${id}/${variant}`;
  const found = held.get(name) ?? api.file(id, variant).then((blob) => URL.createObjectURL(blob));
  held.delete(name);
  held.set(name, found);
  found.catch(() => held.delete(name));
  for (const oldest of [...held.keys()].slice(0, Math.max(0, held.size - HELD))) release(oldest);
  return found;
}

function release(name) {
  held.get(name).then(URL.revokeObjectURL, () => {});
  held.delete(name);
}

/** Gives up all that is held of a video that is gone. */
export function dropped(id) {
  for (const name of [...held.keys()]) if (name.startsWith(`${id}/`)) release(name);
}

/** Shows a file in an image; its URL is given up as soon as it is decoded. */
export async function show(image, id, variant) {
  const shown = URL.createObjectURL(await api.file(id, variant));
  image.src = shown;
  try {
    await image.decode();
  } finally {
    URL.revokeObjectURL(shown);
  }
}

/** Saves a video under a name that says what it shows. */
export async function download(video) {
  const words = (video.prompt ?? "").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const name = [...words.slice(0, 8), video.id.slice(-6)].join("-");
  const shown = URL.createObjectURL(await api.file(video.id, "video"));
  const link = document.createElement("a");
  link.href = shown;
  link.download = `${name}.mp4`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(shown), 10_000);
}
