/** The models served, and which is chosen: the list in the bar. */

import { h } from "./dom.js";
import { t } from "./i18n.js";

export class Models extends EventTarget {
  #select;
  #settings;
  #known = [];

  /**
   * Says `chosen` when another model is, by the reader or because the one before is gone.
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

  /** What the operator allows of the chosen model. */
  get limits() {
    return this.#chosen?.afterword ?? {};
  }

  /** Whether the chosen model can fill a gap; nothing said means that it may be tried. */
  get fills() {
    return this.limits.suffix !== false;
  }

  /** Take what `/v1/models` lists. */
  take({ data }) {
    this.#known = data;
    if (this.#chosen === undefined && data.length > 0) this.#settings.model = data[0].id;
    this.#select.replaceChildren(...data.map(({ id, afterword }) => h("option", { value: id },
      afterword?.alias_of ? t("model.alias", { id, model: afterword.alias_of }) : id)));
    this.refresh();
  }

  /** Show the settings after they were changed elsewhere. */
  refresh() {
    this.#select.value = this.#settings.model;
    this.dispatchEvent(new Event("chosen"));
  }

  get #chosen() {
    return this.#known.find((model) => model.id === this.#settings.model);
  }
}
