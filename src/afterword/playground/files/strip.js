/** The strip above the text: a plot of log-probability or entropy along the text. */

import { cleared } from "./dom.js";
import { entropyOf, groupAt, logprobOf } from "./tokens.js";
import { COUNT, stepOf } from "./tint.js";

const DEEPEST_NATS = 10;
const DEEPEST_BITS = 12;

export class Strip extends EventTarget {
  #canvas;
  #groups = [];
  #count = 0;
  #measure = "logprob";
  #span = null;

  constructor(canvas) {
    super();
    this.#canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
    for (const name of ["pointermove", "click"]) {
      canvas.addEventListener(name, (event) => {
        if (this.#count === 0) return;
        const share = event.offsetX / canvas.clientWidth;
        const index = Math.min(this.#count - 1, Math.floor(share * this.#count));
        const type = name === "click" ? "go" : "hover";
        this.dispatchEvent(new CustomEvent(type, { detail: index }));
      });
    }
    canvas.addEventListener("pointerleave", () => this.dispatchEvent(new Event("leave")));
  }

  set measure(name) {
    this.#measure = name;
    this.draw();
  }

  /**
   * Show the groups that end at or before an offset of the text, and shade a selection, given by two
   * offsets; null shades nothing.
   */
  show(groups, valid, span) {
    this.#groups = groups;
    this.#count = groupAt(groups, valid);
    this.#span = span;
    this.draw();
  }

  draw() {
    const canvas = this.#canvas;
    const { pen, width, height } = cleared(canvas);
    if (width === 0 || this.#count === 0) return;
    const style = getComputedStyle(canvas);
    const colours = Array.from({ length: COUNT }, (_, i) => style.getPropertyValue(`--plot-${i}`));
    this.#shadeSelection(pen, width, height, style.getPropertyValue("--select"));
    const columns = Math.min(this.#count, Math.floor(width));
    const gap = width / columns > 4 ? 1 : 0;
    for (let column = 0; column < columns; column += 1) {
      const [depth, step] = this.#column(column, columns);
      if (depth === null) continue;
      const size = Math.max(1.5, depth * (height - 2));
      pen.fillStyle = colours[step];
      const left = (column * width) / columns;
      pen.fillRect(left, height - size, width / columns - gap, size);
    }
  }

  /** Returns depth and step of the most surprising group in a column. */
  #column(column, columns) {
    const first = Math.floor((column * this.#count) / columns);
    const end = Math.max(first + 1, Math.floor(((column + 1) * this.#count) / columns));
    let [deepest, step] = [null, 0];
    for (let i = first; i < end; i += 1) {
      const logprob = logprobOf(this.#groups[i]);
      if (logprob === null) continue;
      const depth = this.#measure === "entropy"
        ? (entropyOf(this.#groups[i]) ?? 0) / DEEPEST_BITS : -logprob / DEEPEST_NATS;
      if (deepest !== null && depth <= deepest) continue;
      deepest = Math.min(1, depth);
      step = this.#measure === "entropy"
        ? Math.min(COUNT - 1, Math.floor(deepest * COUNT * 1.6)) : stepOf(logprob);
    }
    return [deepest, step];
  }

  #shadeSelection(pen, width, height, colour) {
    if (this.#span === null) return;
    const [from, to] = this.#span.map((offset) => groupAt(this.#groups, offset) / this.#count);
    pen.fillStyle = colour;
    pen.fillRect(from * width, 0, Math.max(2, (Math.min(1, to) - from) * width), height);
  }
}
