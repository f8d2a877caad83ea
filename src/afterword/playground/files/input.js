/**
 * The page to write on: a text area over a overlay of its text, which carries the tints.
 *
 * The text area does what text areas do (typing, selection, screen readers); the overlay has the
 * same text in the same place and is painted by the CSS Custom Highlight API, so that no element
 * stands for a token. Only what is in view is painted.
 */

import { eachFrame } from "./dom.js";
import { Overlay } from "./overlay.js";
import { COUNT, stepOf } from "./tint.js";
import { groupAt, logprobOf } from "./tokens.js";

const POINTED = "pointed";
const MARGIN_PX = 200;

export class Input extends EventTarget {
  #area;
  #overlay;
  #view;
  #groups = [];
  #valid = 0;
  #pointed = -1;
  // What the tints on the page were made from.
  #painted = [];
  #paintLater = eachFrame(() => this.#paint());
  #pointLater;
  #pointer = null;

  /** @param {{area: HTMLTextAreaElement, overlay: HTMLElement, view: HTMLElement}} parts */
  constructor({ area, overlay, view }) {
    super();
    this.#area = area;
    this.#overlay = new Overlay(overlay);
    this.#view = view;
    area.addEventListener("input", () => {
      this.#sync();
      this.point(-1);
      this.dispatchEvent(new Event("edit"));
    });
    view.addEventListener("scroll", this.#paintLater, { passive: true });
    new ResizeObserver(this.#paintLater).observe(overlay);
    this.#pointLater = eachFrame(() => this.#hover());
    area.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch") return;
      this.#pointer = { x: event.clientX, y: event.clientY };
      this.#pointLater();
    });
    area.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.dispatchEvent(new Event("leave"));
    });
  }

  get value() {
    return this.#area.value;
  }

  get area() {
    return this.#area;
  }

  get selection() {
    return [this.#area.selectionStart, this.#area.selectionEnd];
  }

  /** Replace the text; the caret goes to `caret`, or to the end. */
  show(text, caret = text.length) {
    if (text !== this.#area.value) this.#area.value = text;
    this.#area.setSelectionRange(caret, caret);
    this.#sync();
  }

  /** Add to the end, as a stream does; stay with the end if it is in view. */
  append(text) {
    const near = this.#view.scrollHeight - this.#view.scrollTop - this.#view.clientHeight < 120;
    const end = this.#area.value.length;
    this.#area.setRangeText(text, end, end, "end");
    this.#sync();
    if (near) this.#view.scrollTop = this.#view.scrollHeight;
  }

  /** Tint these groups, as far as they lie before `valid`. */
  mark(groups, valid) {
    if (groups === this.#groups && valid === this.#valid) return;
    this.#groups = groups;
    this.#valid = valid;
    this.#paintLater();
  }

  /** The group pointed at, by index; -1 for none. */
  point(index) {
    if (index === this.#pointed) return;
    this.#pointed = index;
    const group = this.#groups[index];
    if (group === undefined) CSS.highlights.delete(POINTED);
    else CSS.highlights.set(POINTED, new Highlight(this.#overlay.range(group.start, group.end)));
  }

  /** Where a group stands and what of the page is in view, relative to the overlay's box. */
  place(index) {
    const { start, end } = this.#groups[index];
    const box = this.#overlay.box.getBoundingClientRect();
    const rect = this.#overlay.rects(start, Math.max(end, start + 1))[0] ?? box;
    const view = this.#view.getBoundingClientRect();
    return {
      left: rect.left - box.left, top: rect.top - box.top, bottom: rect.bottom - box.top,
      width: box.width, inView: [view.top - box.top, view.bottom - box.top],
    };
  }

  reveal(offset) {
    const rect = this.#overlay.rects(offset, offset + 1)[0];
    if (rect === undefined) return;
    const view = this.#view.getBoundingClientRect();
    if (rect.top < view.top + 40 || rect.bottom > view.bottom - 40) {
      this.#view.scrollTop += rect.top - view.top - view.height / 3;
    }
  }

  /** The index of the tinted group that ends at or holds an offset, or -1. */
  indexAt(offset) {
    const index = groupAt(this.#groups, offset);
    const group = this.#groups[index];
    if (group === undefined || group.start > offset || group.end > this.#valid) return -1;
    return index;
  }

  #sync() {
    this.#overlay.show(this.#area.value);
    this.#paintLater();
  }

  #paint() {
    const groups = this.#groups;
    const [first, end] = this.#inView();
    const now = [groups, this.#overlay.version, first, end, groups[end - 1]?.end];
    if (now.every((part, i) => part === this.#painted[i])) return;
    this.#painted = now;
    const steps = Array.from({ length: COUNT }, () => []);
    for (let i = first; i < end; i += 1) {
      const group = groups[i];
      const logprob = logprobOf(group);
      if (logprob === null || group.start === group.end) continue;
      steps[stepOf(logprob)].push(this.#overlay.range(group.start, group.end));
    }
    steps.forEach((ranges, step) => CSS.highlights.set(`tint-${step}`, new Highlight(...ranges)));
  }

  /** Indexes of the first group to be tinted, and of the one after the last. */
  #inView() {
    if (this.#groups.length === 0) return [0, 0];
    const view = this.#view.getBoundingClientRect();
    const first = this.#overlay.offsetBelow(view.top - MARGIN_PX);
    const last = this.#overlay.offsetBelow(view.bottom + MARGIN_PX);
    const known = groupAt(this.#groups, this.#valid);
    return [groupAt(this.#groups, first), Math.min(known, groupAt(this.#groups, last) + 1)];
  }

  #hover() {
    if (this.#pointer === null) return;
    this.dispatchEvent(new CustomEvent("hover", { detail: this.#indexUnder(this.#pointer) }));
  }

  /** The group under a point: its line by height, then the one whose boxes hold the point. */
  #indexUnder({ x, y }) {
    const from = this.#overlay.offsetBelow(y);
    for (let i = groupAt(this.#groups, from); i < this.#groups.length; i += 1) {
      const group = this.#groups[i];
      if (group.end > this.#valid) return -1;
      const rects = this.#overlay.rects(group.start, group.end);
      if (rects.length > 0 && rects.every((rect) => rect.top > y)) return -1;
      const inside = (r) => x >= r.left && x < r.right && y >= r.top && y < r.bottom;
      if (rects.some(inside)) return i;
    }
    return -1;
  }
}
