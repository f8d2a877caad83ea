/** The list of models in the bar, and which one is chosen. */

import { h } from "./dom.js";
import { t } from "./i18n.js";

export class Models extends EventTarget {
  #select;
  #settings;
  #known = [];

  /**
   * Dispatches `chosen` whenever the choice or its limits may have changed.
   * @param {HTMLSelectElement} select
   * @param {object} settings `model` is changed in place
   */
  constructor(select, settings) {
    super();
    this.#select = select;
    this.#settings = settings;
    select.addEventListener("change", () => {
      settings.model = select.value;
      this.refresh();
    });
  }

  /** Whether the server has no model for this reader. */
  isEmpty = false;

  /** The operator's limits of the chosen model. */
  get limits() {
    return this.#chosen?.afterword ?? {};
  }

  /** The key of the words that say why no gap can be filled, or null if one can. */
  get gapless() {
    if (this.wraps) return "infill.chat";
    return this.limits.suffix === false ? "infill.none" : null;
  }

  /** Whether the chosen model fills gaps here; true if the server does not say. */
  get fills() {
    return this.gapless === null;
  }

  /**
   * Who puts prompts into the chat template of the chosen model: the page if the reader wants it, the
   * server under this name, or nobody because the model has none.
   * @returns {"offered"|"server"|"none"}
   */
  get template() {
    if (this.limits.template === "chat") return "server";
    return this.limits.chat_template === true ? "offered" : "none";
  }

  /** Whether the page puts prompts into the chat template. */
  get wraps() {
    return this.#settings.chat_template && this.template === "offered";
  }

  /** Show the models of an answer of `/v1/models`. */
  take({ data }) {
    this.#known = data;
    this.isEmpty = data.length === 0;
    this.#select.replaceChildren(...data.map(({ id, afterword }) => h("option", { value: id },
      afterword?.alias_of ? t("model.alias", { id, model: afterword.alias_of }) : id)));
    this.refresh();
  }

  /** Show the chosen model after a change from outside; the first one if it is not served here. */
  refresh() {
    if (this.#chosen === undefined && this.#known.length > 0) this.#settings.model = this.#known[0].id;
    this.#select.value = this.#settings.model;
    this.dispatchEvent(new Event("chosen"));
  }

  get #chosen() {
    return this.#known.find((model) => model.id === this.#settings.model);
  }
}
