/** The live view: figures of /metrics as small moving plots. */

import { cleared, h } from "./dom.js";
import { number, t } from "./i18n.js";
import { rates, totals } from "./exposition.js";

const EVERY_MS = 1000;
const KEPT = 90;
const PLOTS = [
  { key: "running", of: (r) => r.running, shown: (r) => number(r.running) },
  { key: "waiting", of: (r) => r.waiting, shown: (r) => number(r.waiting) },
  { key: "tokens_per_s", of: (r) => r.tokens_per_s, shown: (r) => number(r.tokens_per_s, 1) },
  {
    key: "cells", of: (r) => r.cells, top: (r) => r.cells_total,
    shown: (r) => (r.cells === null ? "–" : t("live.of", { used: number(r.cells), total: number(r.cells_total) })),
  },
  {
    key: "hits", of: (r) => r.hits, top: () => 1,
    shown: (r) => (r.hits === null ? "–" : `${number(r.hits * 100)} %`),
  },
];

export class Live {
  #box;
  #scrape;
  #made = new Map();
  #kept = [];
  #before = null;
  #timer = null;

  /** @param {() => Promise<string|null>} scrape resolves to the text of /metrics, or null */
  constructor(box, scrape) {
    this.#box = box;
    this.#scrape = scrape;
    document.addEventListener("visibilitychange", () => this.#turn());
  }

  build() {
    const rows = PLOTS.map(({ key }) => {
      // It changes each second, which a screen reader must not announce.
      const value = h("output", { class: "live-value", "aria-live": "off" }, "–");
      const canvas = h("canvas", { class: "live-plot", "aria-hidden": "true" });
      this.#made.set(key, { value, canvas });
      return h("section", { class: "live-row" },
        h("h2", {}, t(`live.${key}`)), value, canvas, h("p", { class: "hint" }, t(`live.${key}.hint`)));
    });
    this.#box.replaceChildren(...rows);
    this.#draw();
  }

  /** Scrape while the view is open and the page is visible. */
  set open(open) {
    this.wanted = open;
    this.#turn();
  }

  #turn() {
    const on = this.wanted === true && !document.hidden;
    if (on && this.#timer === null) {
      this.#timer = setInterval(() => void this.#look(), EVERY_MS);
      void this.#look();
    } else if (!on && this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
      this.#before = null;
    }
  }

  async #look() {
    const text = await this.#scrape();
    if (text === null) return;
    const [now, at_s] = [totals(text), performance.now() / 1000];
    if (this.#before !== null) {
      this.#kept.push(rates(this.#before.now, now, at_s - this.#before.at_s));
      if (this.#kept.length > KEPT) this.#kept.shift();
    }
    this.#before = { now, at_s };
    this.#draw();
  }

  #draw() {
    const last = this.#kept.at(-1);
    for (const plot of PLOTS) {
      const { value, canvas } = this.#made.get(plot.key);
      if (last !== undefined) value.textContent = plot.shown(last);
      const top = last === undefined ? 1 : (plot.top?.(last) ?? 0);
      draw(canvas, this.#kept.map(plot.of), top);
    }
  }
}

/** Draw a filled line, newest value at the right, with a gap for each null. */
function draw(canvas, values, top) {
  const { pen, width, height } = cleared(canvas);
  if (width === 0 || values.length === 0) return;
  const style = getComputedStyle(canvas);
  const most = Math.max(top, 1, ...values.map((value) => value ?? 0));
  const x = (i) => width - ((values.length - 1 - i) * width) / (KEPT - 1);
  const y = (value) => height - 1.5 - (value / most) * (height - 4);
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.strokeStyle = style.getPropertyValue("--accent");
  pen.fillStyle = style.getPropertyValue("--accent-soft");
  let from = null;
  for (let i = 0; i <= values.length; i += 1) {
    const value = values[i] ?? null;
    if (value !== null && from === null) from = i;
    if (value !== null || from === null) continue;
    pen.beginPath();
    for (let j = from; j < i; j += 1) pen.lineTo(x(j), y(values[j]));
    pen.stroke();
    pen.lineTo(x(i - 1), height);
    pen.lineTo(x(from), height);
    pen.fill();
    from = null;
  }
}
