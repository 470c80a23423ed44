// What is known of the videos, kept up to date: a page of the list every few seconds, and a stream of events for what
// is in work. A browser has six connections to a server for all of its tabs: only a few streams are open, and only in a
// tab that is looked at.

import * as api from "./api.js";
import { live } from "./dom.js";

const PAGE = 24;
const STREAMS = 2;
const SOON = 1500; // milliseconds between two looks while something is in work
const LATER = 8000;

/** Tells `change` {video, before}, `gone` {id} and `page`. */
class Videos extends EventTarget {
  constructor() {
    super();
    this.held = new Map();
    this.streams = new Map();
    this.more = false; // older ones than those that are held
    this.timer = 0;
    this.loaded = false;
  }

  /** The newest first: a later id is the greater. */
  get all() {
    return [...this.held.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
  }

  get(id) {
    return this.held.get(id);
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Takes what the server says of a video. What a slower answer says of one that has ended is old. */
  take(video) {
    const before = this.held.get(video.id);
    if (before && !live(before) && live(video)) return;
    const kept = live(video) ? { preview: before?.preview, ...video } : video;
    this.held.set(video.id, kept);
    if (!before || JSON.stringify(before) !== JSON.stringify(kept)) this.tell("change", { video: kept, before });
  }

  drop(id) {
    this.streams.get(id)?.abort();
    if (this.held.delete(id)) this.tell("gone", { id });
  }

  async start() {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) for (const control of this.streams.values()) control.abort();
      else this.look();
    });
    await this.look();
  }

  /** Reads the newest page, then what is in work but not on it, and comes back later. */
  async look() {
    clearTimeout(this.timer);
    if (this.looking) return;
    this.looking = true;
    try {
      const asked = new Set(this.held.keys());
      const page = await api.list(PAGE);
      const found = new Set(page.data.map((video) => video.id));
      for (const video of page.data) if (!this.streams.has(video.id) || !live(video)) this.take(video);
      const oldest = page.has_more ? page.last_id : "";
      for (const id of asked) if (!found.has(id) && id >= oldest) this.drop(id);
      if (!this.loaded) this.more = page.has_more;
      this.loaded = true;
      const others = this.all.filter((video) => live(video) && !found.has(video.id) && !this.streams.has(video.id));
      await Promise.all(others.slice(0, 4).map((video) => this.renew(video.id)));
      this.tell("page");
      this.follow();
    } catch (error) {
      this.tell("trouble", { error });
    }
    this.looking = false;
    const busy = this.all.some(live);
    if (!document.hidden) this.timer = setTimeout(() => this.look(), busy ? SOON : LATER);
  }

  async renew(id) {
    try {
      this.take(await api.get(id));
    } catch (error) {
      if (error.status === 404) this.drop(id);
      else throw error;
    }
  }

  async older() {
    const page = await api.list(PAGE, this.all.at(-1)?.id);
    page.data.forEach((video) => this.take(video));
    this.more = page.has_more;
    this.tell("page");
  }

  /** Something was asked for: it is known at once. */
  add(video) {
    this.take(video);
    this.tell("added", { video });
    this.look();
  }

  /** Opens streams for what is in work, then for what waits longest. */
  follow() {
    const waiting = this.all.filter((video) => live(video) && !this.streams.has(video.id)).reverse();
    waiting.sort((a, b) => (b.status === "in_progress") - (a.status === "in_progress"));
    for (const video of waiting.slice(0, Math.max(0, STREAMS - this.streams.size))) this.listen(video.id);
  }

  async listen(id) {
    const control = new AbortController();
    this.streams.set(id, control);
    try {
      for await (const [name, data] of api.events(id, control.signal)) {
        if (name === "deleted") this.drop(id);
        else this.take(data);
      }
    } catch {
      // The list is read all the same.
    }
    this.streams.delete(id);
    const video = this.get(id);
    if (!video || !live(video)) this.follow(); // else it broke off, and is tried again after the next look
  }
}

export const videos = new Videos();
