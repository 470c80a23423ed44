// A handle on a track, moved by pointer or by keys.

import { h, round } from "./dom.js";

/**
 * A handle. `track`: the element whose width is `scale()` seconds. `range()`: the least and the greatest value.
 * `moved(value)` is called with each new one, a multiple of `step`.
 */
export function handle({ label, track, scale, range, step, moved, ...props }) {
  const element = h("div", { role: "slider", tabIndex: 0, "aria-label": label, "aria-orientation": "horizontal", ...props });
  let value = 0;
  const go = (wanted) => {
    const [least, most] = range();
    const next = round(Math.min(most, Math.max(least, Math.round(wanted / step) * step)), 6);
    if (next !== value) moved(next);
  };
  element.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 * step : step;
    const [least, most] = range();
    const to = {
      ArrowLeft: value - far, ArrowDown: value - far, ArrowRight: value + far, ArrowUp: value + far,
      PageDown: value - 10 * step, PageUp: value + 10 * step, Home: least, End: most,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(to);
  });
  element.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    element.focus();
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (!element.hasPointerCapture(event.pointerId)) return;
    const box = track.getBoundingClientRect();
    go(((event.clientX - box.left) / box.width) * scale());
  });
  /** Shows a value, where the caller has taken it. */
  element.place = (shown) => {
    const [least, most] = range();
    value = shown;
    element.style.left = `${(100 * shown) / scale()}%`;
    element.setAttribute("aria-valuemin", round(least));
    element.setAttribute("aria-valuemax", round(most));
    element.setAttribute("aria-valuenow", round(shown));
    element.setAttribute("aria-valuetext", `${round(shown)} seconds`);
  };
  return element;
}
