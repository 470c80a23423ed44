// The public API, as any client has it. A key is sent as a header, so that events and files are fetched too.

const KEY = "worldline-key";
let unlocking = null;
let ask = async () => false;

export class Refusal extends Error {
  constructor(status, told) {
    super(told.message);
    Object.assign(this, { status, param: told.param, code: told.code });
  }
}

/** `ask(message)` brings a key, or false where its owner will not give one. */
export const onLocked = (asker) => (ask = asker);
export const keyed = () => sessionStorage.getItem(KEY) !== null;
export const forget = () => sessionStorage.removeItem(KEY);

async function unlocked(message) {
  unlocking ??= ask(message).finally(() => (unlocking = null));
  const key = await unlocking;
  if (key) sessionStorage.setItem(KEY, key);
  return Boolean(key);
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const told = body?.error ?? { message: `The server answered ${response.status} without a word.`, param: null, code: null };
  return new Refusal(response.status, told);
}

/** The answer of a call; throws Refusal with the server's own words. Asks for a key where one is missing. */
export async function call(path, { method = "GET", fields, signal } = {}) {
  for (;;) {
    const headers = {};
    if (keyed()) headers.authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
    let body;
    if (fields) {
      body = bodyOf(fields);
      if (typeof body === "string") headers["content-type"] = "application/json";
    }
    let response;
    try {
      response = await fetch(path, { method, headers, body, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0, { message: "The server does not answer. Is it still running?", param: null, code: "offline" });
    }
    if (response.ok) return response;
    const told = await refusal(response);
    if (response.status !== 401 || !(await unlocked(told.message))) throw told;
  }
}

const json = async (...asked) => (await call(...asked)).json();
const at = (id, rest = "") => `/v1/videos/${encodeURIComponent(id)}${rest}`;

/** JSON, or a form with bracketed names where a file is among the fields. What is not given is left out. */
function bodyOf(fields) {
  const given = pruned(fields);
  if (!holdsFile(given)) return JSON.stringify(given);
  const form = new FormData();
  const add = (name, value) => {
    if (value instanceof Blob) form.append(name, value, "picture");
    else if (Array.isArray(value)) value.forEach((item, index) => add(`${name}[${index}]`, item));
    else if (typeof value === "object") Object.entries(value).forEach(([key, item]) => add(`${name}[${key}]`, item));
    else form.append(name, String(value));
  };
  Object.entries(given).forEach(([name, value]) => add(name, value));
  return form;
}

const holdsFile = (value) =>
  value instanceof Blob || (value !== null && typeof value === "object" && Object.values(value).some(holdsFile));

function pruned(value) {
  if (Array.isArray(value)) return value.map(pruned);
  if (value === null || typeof value !== "object" || value instanceof Blob) return value;
  const kept = Object.entries(value).filter(([, item]) => item !== undefined && item !== null && item !== "");
  return Object.fromEntries(kept.map(([name, item]) => [name, pruned(item)]));
}

export const models = () => json("/v1/models");
export const list = (limit, after) => json(`/v1/videos?limit=${limit}${after ? `&after=${after}` : ""}`);
export const get = (id) => json(at(id));
export const create = (fields) => json("/v1/videos", { method: "POST", fields });
export const rewrite = (prompt) => json("/v1/videos/rewrites", { method: "POST", fields: { prompt } });
export const remix = (id, fields) => json(at(id, "/remix"), { method: "POST", fields });
export const edit = (fields) => json("/v1/videos/edits", { method: "POST", fields });
export const extend = (fields) => json("/v1/videos/extensions", { method: "POST", fields });
export const cancel = (id) => json(at(id, "/cancel"), { method: "POST" });
export const remove = (id) => json(at(id), { method: "DELETE" });

/** A file of a video: "video", "thumbnail" or "spritesheet". */
export const file = async (id, variant, signal) => (await call(at(id, `/content?variant=${variant}`), { signal })).blob();

/** Server-sent events of a video as [name, data], until it ends. EventSource could not send a key. */
export async function* events(id, signal) {
  const response = await call(at(id, "/events"), { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const lines = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (lines.data) yield [lines.event, JSON.parse(lines.data)];
    }
  }
}
