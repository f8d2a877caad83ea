/**
 * The input: a text area, and an overlay that carries the tints.
 *
 * The text area handles typing, selection and screen readers. The overlay has the same text in the
 * same place. The CSS Custom Highlight API paints it, so tokens need no elements. Only the part in
 * view is painted.
 */

import { eachFrame } from "./dom.js";
import { Overlay } from "./overlay.js";
import { COUNT, spansOf, VARIANTS } from "./tint.js";
import { groupAt } from "./tokens.js";

const POINTED = "pointed";
const MARGIN_PX = 200;
/** The text area lags behind a stream by at most one part in this many of the text. */
const LAG = 8;

export class Input extends EventTarget {
  #area;
  #overlay;
  #view;
  #groups = [];
  #valid = 0;
  #pointed = -1;
  #gap = null;
  // What a stream has added, and the text area does not have yet: its place, its text, and how much
  // of it the overlay shows.
  #ahead = null;
  // Browsers move the caret of a text area without the focus to its start.
  #kept = [0, 0];
  #marks;
  // What the last painting was made from; the same values paint nothing.
  #painted = [];
  #paintLater = eachFrame(() => this.#paint());
  #pointLater;
  #pointer = null;

  /**
   * @param {{area: HTMLTextAreaElement, overlay: HTMLElement, view: HTMLElement,
   *   marks: [HTMLElement, HTMLElement]}} parts `marks` stand at the ends of the gap
   */
  constructor({ area, overlay, view, marks }) {
    super();
    this.#marks = marks;
    this.#area = area;
    this.#overlay = new Overlay(overlay);
    this.#view = view;
    area.addEventListener("input", () => {
      this.#sync();
      this.point(-1);
      this.dispatchEvent(new Event("edit"));
    });
    area.addEventListener("focus", () => area.setSelectionRange(...this.#kept));
    // A reader who selects or copies during a stream gets all that is there.
    for (const type of ["pointerdown", "keydown"]) {
      area.addEventListener(type, () => this.catchUp());
    }
    area.addEventListener("blur", () => {
      this.#kept = [area.selectionStart, area.selectionEnd];
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
    const area = this.#area;
    if (document.activeElement === area) this.#kept = [area.selectionStart, area.selectionEnd];
    return this.#kept;
  }

  select(start, end) {
    this.#area.setSelectionRange(start, end);
    this.#kept = [start, end];
  }

  /** Replace the text. The caret goes to `caret`, by default the end. */
  show(text, caret = text.length) {
    this.#ahead = null;
    if (text !== this.#area.value) this.#area.value = text;
    this.select(caret, caret);
    this.#sync();
  }

  /**
   * Insert text of a stream. It is drawn before the next frame: a frame costs the layout of a block,
   * however many tokens came. The text area lags behind, because it lays out all of its text.
   */
  insert(at, text) {
    this.#ahead ??= { at, text: "", shown: 0 };
    this.#ahead.text += text;
    this.#paintLater();
  }

  /** Put what a stream has added into the text area, with the caret after it. */
  catchUp() {
    if (this.#ahead === null) return;
    this.#grow();
    const { at, text } = this.#ahead;
    this.#ahead = null;
    this.#area.setRangeText(text, at, at, "end");
    this.select(at + text.length, at + text.length);
    this.#area.toggleAttribute("data-bidi", this.#overlay.isBidi);
  }

  /** Show what a stream has added since the last frame. If the end is in view, it stays in view. */
  #grow() {
    if (this.#ahead === null || this.#ahead.shown === this.#ahead.text.length) return;
    const { at, text, shown } = this.#ahead;
    const near = this.#view.scrollHeight - this.#view.scrollTop - this.#view.clientHeight < 120;
    const [before, place] = [this.#overlay.text, at + shown];
    this.#overlay.show(before.slice(0, place) + text.slice(shown) + before.slice(place));
    this.#ahead.shown = text.length;
    if (near && place === before.length) this.#view.scrollTop = this.#view.scrollHeight;
  }

  /** Show the ends of a gap; null shows none. */
  showGap(gap) {
    this.#gap = gap;
    this.#paintLater();
  }

  /** Tint the groups that end at or before the offset `valid`. */
  mark(groups, valid) {
    if (groups === this.#groups && valid === this.#valid) return;
    this.#groups = groups;
    this.#valid = valid;
    this.#paintLater();
  }

  /** Underline the group with this index; -1 for none. */
  point(index) {
    if (index === this.#pointed) return;
    this.#pointed = index;
    const group = this.#groups[index];
    if (group === undefined) CSS.highlights.delete(POINTED);
    else CSS.highlights.set(POINTED, new Highlight(this.#overlay.range(group.start, group.end)));
  }

  /** Returns a group's box and the part in view, in pixels relative to the overlay. */
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

  /** Scroll an offset into view. Something lies over the last `covered_px` of the view. */
  reveal(offset, covered_px = 0) {
    const rect = this.#overlay.caret(offset);
    const view = this.#view.getBoundingClientRect();
    if (rect.top < view.top + 40 || rect.bottom > Math.min(view.bottom, innerHeight - covered_px) - 40) {
      this.#view.scrollTop += rect.top - view.top - view.height / 3;
    }
  }

  /** Returns the index of the tinted group that contains an offset, or -1. */
  indexAt(offset) {
    const index = groupAt(this.#groups, offset);
    const group = this.#groups[index];
    if (group === undefined || group.start > offset || group.end > this.#valid) return -1;
    return index;
  }

  #sync() {
    this.#overlay.show(this.#area.value);
    this.#area.toggleAttribute("data-bidi", this.#overlay.isBidi);
    this.#paintLater();
  }

  #paint() {
    this.#grow();
    // So each character is laid out a few times, however long the text is.
    if (this.#ahead !== null && this.#ahead.text.length * LAG >= this.#overlay.text.length) this.catchUp();
    this.#placeGap();
    const groups = this.#groups;
    const [first, end] = this.#inView();
    const now = [groups, this.#overlay.version, first, end, groups[end - 1]?.end];
    if (now.every((part, i) => part === this.#painted[i])) return;
    this.#painted = now;
    const ranges = Array.from({ length: COUNT * VARIANTS.length }, () => []);
    for (const { start, end: stop, step, variant } of spansOf(groups, first, end, this.#overlay.text)) {
      ranges[step * VARIANTS.length + variant].push(this.#overlay.range(start, stop));
    }
    ranges.forEach((list, i) => {
      const name = `tint-${Math.floor(i / VARIANTS.length)}${VARIANTS[i % VARIANTS.length]}`;
      // Each highlight costs a style for every line, so there are none without ranges.
      if (list.length === 0) CSS.highlights.delete(name);
      else CSS.highlights.set(name, new Highlight(...list));
    });
  }

  #placeGap() {
    const gap = this.#gap;
    for (const mark of this.#marks) mark.hidden = gap === null;
    if (gap === null) return;
    const box = this.#overlay.box.getBoundingClientRect();
    const offsets = [gap.start, gap.end];
    this.#marks.forEach((mark, i) => {
      const { left, top, bottom } = this.#overlay.caret(offsets[i]);
      mark.style.left = `${left - box.left}px`;
      mark.style.top = `${top - box.top}px`;
      mark.style.height = `${bottom - top}px`;
    });
    this.#marks[1].hidden = gap.start === gap.end;
    this.#marks[0].classList.toggle("empty", gap.start === gap.end);
  }

  /** Returns the indexes of the first group to tint, and of the one after the last. */
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

  /** Returns the index of the group under a point, or -1: finds its line, then its box. */
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
