/** What an empty page offers: beginnings to try, gone with the first key. */

import { find, h, write } from "./dom.js";
import { t } from "./i18n.js";

/**
 * @typedef {{name: string, asks?: boolean, gap?: boolean, score?: boolean}} Beginning
 * `asks`: in a chat template it has another text, an instruction; `gap`: its text has a gap where `|`
 * stands; `score`: it is scored and not continued
 */

/** @type {Beginning[]} */
const BEGINNINGS = [
  { name: "story", asks: true }, { name: "dialogue", asks: true }, { name: "list", asks: true },
  { name: "few", asks: true },
  { name: "gap", gap: true }, { name: "score", score: true },
];

/** Dispatches `chosen` with `{text, gap, score}`. */
export class Start extends EventTarget {
  #box = find("#start");
  #session;
  #models;

  /**
   * @param {import("./session.js").Session} session
   * @param {import("./models.js").Models} models
   */
  constructor(session, models) {
    super();
    this.#session = session;
    this.#models = models;
  }

  /** Show the beginnings if the page is empty. */
  follow() {
    const { text, running, choices } = this.#session;
    const hidden = text !== "" || running !== null || choices.length > 0;
    if (hidden === this.#box.hidden) return;
    this.#box.hidden = hidden;
    if (hidden) delete document.body.dataset.empty;
    else document.body.dataset.empty = "";
  }

  /** Build the beginnings in the current language. */
  build() {
    const { wraps, gapless } = this.#models;
    write("#start-title", t(wraps ? "start.asks" : "start.what"));
    find("#text").placeholder = t(wraps ? "text.asks" : "text.placeholder");
    find("#beginnings").replaceChildren(...BEGINNINGS.map((beginning) => {
      const { name, gap = false } = beginning;
      const off = gap && gapless !== null;
      return h("li", {}, h("button", {
        type: "button", class: "beginning", disabled: off, "data-beginning": name,
        title: t(off ? gapless : "start.try"), onclick: () => this.#choose(beginning),
      },
      h("strong", {}, t(`start.${name}`)),
      h("span", { class: "beginning-text" }, h("bdi", {}, shown(this.#textOf(beginning))))));
    }));
  }

  #textOf({ name, asks = false }) {
    return t(`start.${name}.${asks && this.#models.wraps ? "asks" : "text"}`);
  }

  #choose(beginning) {
    const { gap = false, score = false } = beginning;
    const raw = this.#textOf(beginning);
    const at = raw.indexOf("|");
    this.dispatchEvent(new CustomEvent("chosen", {
      detail: {
        text: gap ? raw.replace("|", "") : raw, gap: gap ? { start: at, end: at } : null, score,
      },
    }));
  }
}

/** Returns a text in one line, with its gap as a box. */
function shown(text) {
  return text.replace("|", "▯").replace(/\s+/g, " ");
}
