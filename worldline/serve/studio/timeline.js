// A video as a strip of its frames, on which stretches to keep are marked, cut in two, moved and put in order.

import * as api from "./api.js";
import { h, length, round, say, span } from "./dom.js";
import { handle } from "./slider.js";

const SPRITES = 16; // frames of a spritesheet at most, four in a row

export class Timeline {
  /** Of a `video`, which `player` shows; `changed(timeline)` is called with each change. */
  constructor(video, player, changed) {
    Object.assign(this, { video, player, changed, total: length(video), frame: 1 / video.worldline.fps });
    this.stretches = [];
    this.strip = h("canvas", { class: "strip", "aria-hidden": "true" }); // all of it, pale
    this.kept = h("canvas", { class: "strip", "aria-hidden": "true" }); // but for what is kept
    this.track = h("div", { class: "track" }, this.strip, this.kept);
    this.playhead = handle({
      label: "Playhead", class: "playhead", track: this.track, scale: () => this.total, step: this.frame,
      range: () => [0, this.total - this.frame], moved: (at) => this.seek(at),
    });
    this.playhead.place(0);
    this.track.append(this.playhead);
    this.list = h("ol", { class: "stretches" });
    const button = (text, act) => h("button", { type: "button", onclick: act }, text);
    this.play = button("Play the cut", () => (this.playing ? this.stop() : this.run()));
    this.element = h("div", { class: "timeline", role: "group", "aria-label": "Timeline" }, this.track,
      h("div", { class: "row" }, button("Split at the playhead", () => this.split()), this.play,
        button("Whole video", () => this.reset())),
      this.list);
    this.reset();
    this.paint();
    this.follow = this.follow.bind(this);
    requestAnimationFrame(this.follow);
  }

  /** Stretches to keep, in the order in which they follow each other, in seconds. */
  keep() {
    return this.stretches.map(({ begin, end }) => [round(begin, 4), round(end, 4)]);
  }

  /** Seconds around a cut that can be made anew: no more than every stretch has to give. */
  get room() {
    if (this.stretches.length < 2) return Infinity;
    const shortest = Math.min(...this.stretches.map(({ begin, end }) => Math.round((end - begin) / this.frame)));
    return Math.max(0, Math.floor((shortest - 1) / 2)) * this.frame;
  }

  reset() {
    for (const stretch of this.stretches) stretch.element.remove();
    this.stretches = [];
    this.add(0, this.total, 0);
    this.draw();
  }

  add(begin, end, index) {
    const stretch = { begin, end };
    const edge = (name) => handle({
      label: "", class: `edge ${name}`, track: this.track, scale: () => this.total, step: this.frame,
      range: () => this.between(stretch, name),
      moved: (at) => ((stretch[name] = at), this.seek(name === "end" ? at - this.frame : at), this.draw()),
    });
    stretch.area = h("div", { class: "area" });
    stretch.from = edge("begin");
    stretch.to = edge("end");
    stretch.element = h("div", { class: "stretch", role: "group" }, stretch.area, stretch.from, stretch.to);
    this.stretches.splice(index, 0, stretch);
    this.track.append(stretch.element);
    return stretch;
  }

  /** How far an end of a stretch may go: to its other end, and to its neighbour in time. */
  between(stretch, name) {
    const others = this.stretches.filter((other) => other !== stretch);
    if (name === "begin") {
      const before = others.map(({ end }) => end).filter((end) => end <= stretch.begin + this.frame / 2);
      return [Math.max(0, ...before), stretch.end - this.frame];
    }
    const after = others.map(({ begin }) => begin).filter((begin) => begin >= stretch.end - this.frame / 2);
    return [stretch.begin + this.frame, Math.min(this.total, ...after)];
  }

  split() {
    const at = Math.round(this.player.currentTime / this.frame) * this.frame;
    const index = this.stretches.findIndex(({ begin, end }) => begin + this.frame / 2 < at && at < end - this.frame / 2);
    if (index < 0) return say("The playhead is not inside a stretch");
    const stretch = this.stretches[index];
    this.add(at, stretch.end, index + 1);
    stretch.end = at;
    this.draw();
    say(`Split at ${span(at)}; ${this.stretches.length} stretches`);
  }

  move(stretch, way) {
    const index = this.stretches.indexOf(stretch);
    this.stretches.splice(index, 1);
    this.stretches.splice(index + way, 0, stretch);
    this.draw();
    this.list.children[index + way].querySelector("button:not(:disabled)").focus();
    say(`Now stretch ${index + way + 1} of ${this.stretches.length}`);
  }

  remove(stretch) {
    const index = this.stretches.indexOf(stretch);
    this.stretches.splice(index, 1);
    stretch.element.remove();
    this.draw();
    (this.list.children[Math.min(index, this.stretches.length - 1)].querySelector("button:not(:disabled)") ?? this.playhead).focus();
    say(`Removed; ${this.stretches.length} left`);
  }

  draw() {
    const percent = (at) => `${(100 * at) / this.total}%`;
    this.stretches.forEach((stretch, i) => {
      const { begin, end, area, from, to, element } = stretch;
      area.style.left = percent(begin);
      area.style.width = percent(end - begin);
      area.dataset.number = i + 1;
      element.setAttribute("aria-label", `Stretch ${i + 1}`);
      from.setAttribute("aria-label", `Stretch ${i + 1} begins`);
      to.setAttribute("aria-label", `Stretch ${i + 1} ends`);
      from.place(begin);
      to.place(end);
    });
    const stops = [...this.stretches].sort((a, b) => a.begin - b.begin).flatMap(({ begin, end }) => [
      `transparent ${percent(begin)}`, `black ${percent(begin)}`, `black ${percent(end)}`, `transparent ${percent(end)}`,
    ]);
    this.kept.style.maskImage = `linear-gradient(to right, ${stops.join(", ")})`;
    const button = (stretch, text, act, disabled) => h("button", {
      type: "button", class: "plain", disabled, onclick: act,
      "aria-label": `${text} stretch ${this.stretches.indexOf(stretch) + 1}`,
    }, text);
    const last = this.stretches.length - 1;
    this.list.replaceChildren(...this.stretches.map((stretch, i) => h("li", {},
      h("span", {}, `${span(stretch.begin)} to ${span(stretch.end)}`),
      button(stretch, "Sooner", () => this.move(stretch, -1), i === 0),
      button(stretch, "Later", () => this.move(stretch, 1), i === last),
      button(stretch, "Remove", () => this.remove(stretch), last === 0))));
    this.changed(this);
  }

  /** The frames along the strip, from the spritesheet: each as wide as its proportions say, at its time. */
  async paint() {
    const sheet = await createImageBitmap(await api.file(this.video.id, "spritesheet"));
    const count = Math.min(SPRITES, this.video.worldline.frames);
    const columns = Math.min(4, count);
    const [wide, high] = [sheet.width / columns, sheet.height / Math.ceil(count / columns)];
    const height = 112;
    const across = Math.max(1, Math.round((this.track.clientWidth || 600) * 2 / (height * wide / high)));
    Object.assign(this.strip, { width: Math.round(across * height * wide / high), height });
    const context = this.strip.getContext("2d");
    for (let i = 0; i < across; i++) {
      const index = Math.min(count - 1, Math.floor(((i + 0.5) / across) * count));
      const from = [(index % columns) * wide, Math.floor(index / columns) * high];
      context.drawImage(sheet, ...from, wide, high, (i * this.strip.width) / across, 0, this.strip.width / across, height);
    }
    sheet.close();
    Object.assign(this.kept, { width: this.strip.width, height });
    this.kept.getContext("2d").drawImage(this.strip, 0, 0);
  }

  seek(at) {
    this.stop();
    this.player.pause();
    this.player.currentTime = at + this.frame / 4; // well inside the frame
    this.playhead.place(at);
  }

  /** Shows where the player is, and in a play of the cut goes on with the next stretch where one ends. */
  follow() {
    if (!this.element.isConnected && this.started) return;
    this.started ||= this.element.isConnected;
    const at = this.player.currentTime;
    if (!this.player.paused || this.playing) {
      this.playhead.place(Math.min(this.total - this.frame, Math.floor(at / this.frame) * this.frame));
    }
    if (this.playing) {
      const { end } = this.playing;
      if (at >= end - this.frame / 4 || this.player.ended) this.go(this.stretches.indexOf(this.playing) + 1);
    }
    requestAnimationFrame(this.follow);
  }

  run() {
    this.play.textContent = "Stop";
    this.player.loop = false;
    this.go(0);
  }

  go(index) {
    this.playing = this.stretches[index] ?? null;
    if (!this.playing) return this.stop();
    this.player.currentTime = this.playing.begin;
    this.player.play().catch(() => this.stop());
  }

  stop() {
    if (this.playing !== undefined) this.player.pause();
    this.playing = undefined;
    this.player.loop = true;
    this.play.textContent = "Play the cut";
  }
}
