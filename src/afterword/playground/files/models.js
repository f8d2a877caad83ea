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

  /** The operator's limits of the chosen model. */
  get limits() {
    return this.#chosen?.afterword ?? {};
  }

  /** Whether the chosen model can infill; true if the server does not say. */
  get fills() {
    return this.limits.suffix !== false;
  }

  /** Show the models of an answer of `/v1/models`. */
  take({ data }) {
    this.#known = data;
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
