/** The stage: a view over the text at its full width, for the map and the comparison. */

import { find } from "./dom.js";

/** Dispatches `closed`. */
export class Stage extends EventTarget {
  #box = find("#stage");
  #shown = null;

  constructor() {
    super();
    find("#stage-close").addEventListener("click", () => this.close());
  }

  /** The element on the stage, or null. */
  get shown() {
    return this.#shown;
  }

  show(element, title) {
    if (this.#shown !== element) this.close();
    this.#shown = element;
    find("#stage-title").textContent = title;
    element.hidden = false;
    this.#box.hidden = false;
    document.body.dataset.stage = element.id;
  }

  /** Returns false if nothing was on the stage. */
  close() {
    if (this.#shown === null) return false;
    this.#shown.hidden = true;
    this.#shown = null;
    this.#box.hidden = true;
    delete document.body.dataset.stage;
    this.dispatchEvent(new Event("closed"));
    return true;
  }
}
