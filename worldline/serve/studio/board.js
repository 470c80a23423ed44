// The storyboard: cards with words or a picture, each from its time on, on a lane as long as the video.

import { h, round, say, span } from "./dom.js";
import { handle } from "./slider.js";

const MOST = 100;

export class Board {
  /** `place`: the element that it fills; `seconds()`: how long the video is; `frame`: seconds of one frame. */
  constructor(place, seconds, frame) {
    Object.assign(this, { seconds, frame, cards: [] });
    this.lane = h("div", { class: "lane", role: "group", "aria-label": "Times of the cards" });
    this.list = h("ol", { class: "cards" });
    const more = h("button", { type: "button", onclick: () => this.grow() }, "Add a card");
    place.append(h("p", { class: "soft" }, "Each card says what is shown from its time on: words, a picture, or both."));
    place.append(this.lane, this.list, h("div", { class: "row" }, more));
    this.add(0);
    this.add(seconds() / 2);
  }

  /** A new card in the middle of the longest stretch. */
  grow() {
    if (this.cards.length === MOST) return;
    const ends = [...this.cards.slice(1).map((card) => card.at), this.seconds()];
    const spans = this.cards.map((card, i) => ends[i] - card.at);
    const longest = spans.indexOf(Math.max(...spans));
    const middle = this.cards[longest].at + spans[longest] / 2;
    const card = this.add(Math.round(middle / this.frame) * this.frame, longest + 1);
    card.text.focus();
    say(`Card ${this.cards.indexOf(card) + 1} of ${this.cards.length}`);
  }

  add(at, index = this.cards.length) {
    const card = { at, image: null };
    const many = () => this.cards.indexOf(card);
    card.flag = handle({
      label: "", class: "flag", track: this.lane, scale: this.seconds, step: this.frame,
      range: () => this.room(many()), moved: (value) => ((card.at = value), this.draw()),
    });
    card.text = h("textarea", { rows: 3, maxLength: 32_000, placeholder: "What is shown" });
    card.time = h("input", { type: "number", min: 0, step: "any", inputMode: "decimal" });
    card.time.addEventListener("change", () => this.set(card, Number(card.time.value)));
    card.cut = h("input", { type: "checkbox" });
    card.file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", class: "unseen" });
    card.file.addEventListener("change", () => card.file.files[0] && this.picture(card, card.file.files[0]));
    card.shown = h("div", { class: "picture" });
    const button = (text, act) => h("button", { type: "button", class: "plain", onclick: act }, text);
    card.sooner = button("Earlier", () => this.swap(card, -1));
    card.later = button("Later", () => this.swap(card, 1));
    card.away = button("Remove", () => this.remove(card));
    card.title = h("b");
    card.cutting = h("label", { class: "check" }, card.cut, "New shot");
    card.element = h("li", { class: "card-of-board", "aria-label": "", role: "listitem" },
      h("div", { class: "row" }, card.title, h("label", { class: "at" }, "at", card.time, "s")),
      card.text, card.shown,
      h("div", { class: "row" }, h("label", { class: "button" }, card.file, "Picture"), card.cutting),
      h("div", { class: "row moves" }, card.sooner, card.later, card.away));
    card.flag.card = card.element.card = card;
    this.cards.splice(index, 0, card);
    this.list.insertBefore(card.element, this.list.children[index] ?? null);
    this.draw();
    return card;
  }

  /** Between which times a card may lie: after the one before, before the next one. The first is at 0. */
  room(index) {
    if (index === 0) return [0, 0];
    const next = this.cards[index + 1]?.at ?? this.seconds();
    return [this.cards[index - 1].at + this.frame, Math.max(this.cards[index - 1].at + this.frame, next - this.frame)];
  }

  set(card, at) {
    const [least, most] = this.room(this.cards.indexOf(card));
    card.at = Math.min(most, Math.max(least, Number.isFinite(at) ? at : least));
    this.draw();
  }

  /** Exchanges what two neighbours show; their times stay. */
  swap(card, way) {
    const index = this.cards.indexOf(card);
    const other = this.cards[index + way];
    if (!other) return;
    [card.at, other.at] = [other.at, card.at];
    this.cards[index] = other;
    this.cards[index + way] = card;
    const button = document.activeElement;
    this.list.insertBefore(way < 0 ? card.element : other.element, way < 0 ? other.element : card.element);
    this.draw();
    (button.disabled || !card.element.contains(button) ? card.text : button).focus();
    say(`Now card ${index + way + 1} of ${this.cards.length}`);
  }

  remove(card) {
    const index = this.cards.indexOf(card);
    this.cards.splice(index, 1);
    card.element.remove();
    card.flag.remove();
    this.cards[0].at = 0;
    this.draw();
    this.cards[Math.max(0, index - 1)].text.focus();
    say(`Removed; ${this.cards.length} cards are left`);
  }

  async picture(card, file) {
    card.image = file;
    const shown = URL.createObjectURL(file);
    const image = h("img", { src: shown, alt: `Picture: ${file.name}` });
    const away = h("button", { type: "button", class: "plain" }, "Remove picture");
    away.addEventListener("click", () => {
      Object.assign(card, { image: null });
      card.file.value = "";
      card.shown.replaceChildren();
      card.text.focus();
    });
    card.shown.replaceChildren(image, away);
    await image.decode().catch(() => {});
    URL.revokeObjectURL(shown);
  }

  /** A picture that was dropped on a card, or on none: then the first that has none takes it. */
  drop(file, target) {
    const hit = target.closest?.(".card-of-board")?.card;
    this.picture(hit ?? this.cards.find((card) => !card.image) ?? this.cards[0], file);
  }

  /** Shows where the cards stand. Those beyond the end of a shorter video move to where they fit. */
  draw() {
    const total = this.seconds();
    for (let i = this.cards.length - 1, end = total; i > 0; i--) {
      this.cards[i].at = Math.max(i * this.frame, Math.min(this.cards[i].at, end - this.frame));
      end = this.cards[i].at;
    }
    const marks = Math.min(12, Math.max(1, Math.ceil(total)));
    const ruler = Array.from({ length: marks + 1 }, (_, i) => {
      const mark = h("span", { class: "mark", "aria-hidden": "true" }, span((i * total) / marks));
      mark.style.left = `${(100 * i) / marks}%`;
      return mark;
    });
    for (const old of this.lane.querySelectorAll(".mark")) old.remove();
    this.lane.prepend(...ruler);
    this.cards.forEach((card, i) => {
      const name = `Card ${i + 1}`;
      if (this.lane.children[ruler.length + i] !== card.flag) {
        const focused = document.activeElement === card.flag;
        this.lane.insertBefore(card.flag, this.lane.children[ruler.length + i] ?? null);
        if (focused) card.flag.focus();
      }
      card.flag.textContent = i + 1;
      card.flag.setAttribute("aria-label", `${name} begins`);
      card.flag.setAttribute("aria-disabled", i === 0);
      card.flag.place(card.at);
      card.title.textContent = name;
      card.element.setAttribute("aria-label", name);
      card.text.setAttribute("aria-label", `${name}: words`);
      card.time.setAttribute("aria-label", `${name} begins at, in seconds`);
      card.file.setAttribute("aria-label", `${name}: picture`);
      if (document.activeElement !== card.time) card.time.value = round(card.at);
      card.time.disabled = i === 0;
      card.cutting.hidden = i === 0;
      card.sooner.disabled = i === 0;
      card.later.disabled = i === this.cards.length - 1;
      card.away.disabled = this.cards.length === 1;
    });
  }

  /** What the API is asked for. */
  fields() {
    const storyboard = this.cards.map(({ at, text, image, cut }, i) => ({
      at: round(at, 4), text: text.value, image, cut: (i > 0 && cut.checked) || undefined,
    }));
    const prompt = storyboard.map(({ text }) => text.trim()).filter(Boolean).join("; ") || "a storyboard";
    return { storyboard, prompt };
  }
}
