/** The token view: ids, texts and number of the tokens of the current text, or of its prompt. */

import { h, settled } from "./dom.js";
import { number, t } from "./i18n.js";
import { spelled } from "./tokens.js";

const WAIT_MS = 350;
const SHOWN = 600;

export class TokenView extends EventTarget {
  #box;
  #tokenize;
  #found = null;
  #text = "";
  #asked = 0;
  #later = settled(WAIT_MS, () => void this.#count());

  /**
   * @param {HTMLElement} box
   * @param {(text: string) => Promise<object|null>} tokenize resolves to an answer of /tokenize with
   *   the `prompt` that was tokenized
   */
  constructor(box, tokenize) {
    super();
    this.#box = box;
    this.#tokenize = tokenize;
  }

  /** Tokenize this text when typing pauses. */
  follow(text) {
    this.#text = text;
    this.#later();
  }

  get found() {
    return this.#found;
  }

  async #count() {
    this.#asked += 1;
    const request = this.#asked;
    const found = await this.#tokenize(this.#text.toWellFormed());
    // The text has changed since.
    if (request !== this.#asked) return;
    this.#found = found;
    this.draw();
    this.dispatchEvent(new Event("counted"));
  }

  draw() {
    if (this.#box.closest("[hidden]") !== null) return;
    if (this.#found === null) {
      this.#box.replaceChildren();
      return;
    }
    const { prompt, tokens, token_strs: strings, count, max_model_len: context } = this.#found;
    const first = Math.max(0, count - SHOWN);
    const rows = strings.slice(first).map((text, i) => h("li", { class: "token" },
      h("bdi", {}, spelled(text)), h("span", { class: "id" }, tokens[first + i])));
    const sum = t("tokens.sum", {
      count: number(count), characters: number([...prompt].length), context: number(context),
    });
    const more = first > 0 ? [h("p", { class: "hint" }, t("tokens.last", { count: number(SHOWN) }))] : [];
    this.#box.replaceChildren(h("p", { class: "token-sum" }, sum), ...more,
      h("ol", { class: "token-list", start: first + 1 }, ...rows));
  }
}
