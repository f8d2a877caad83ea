/** Asks for an API key, with one dialog for all requests that were refused. */

import { find } from "./dom.js";
import { t } from "./i18n.js";
import { key } from "./storage.js";

export class KeyDialog {
  #dialog = find("#key");
  #input = find("#key-value");
  #answer = null;
  #settle = null;
  #changed;

  /** @param {() => void} changed runs after the key has changed */
  constructor(changed) {
    this.#changed = changed;
    this.#showButton();
    find("#key-open").addEventListener("click", () => void this.ask());
    find("#key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#end(this.#input.value.trim());
    });
    find("#key-forget").addEventListener("click", () => this.#end(""));
    this.#dialog.addEventListener("close", () => this.#finish(false));
  }

  /** Ask for a key, and show why the last one was refused. Resolves to true if a key is given. */
  ask(refused = null) {
    if (refused !== null) find("#key-open").hidden = false;
    if (this.#answer === null) {
      this.#answer = new Promise((resolve) => {
        this.#settle = resolve;
      });
      this.#input.value = "";
      const said = find("#key-error");
      said.textContent = refused === null ? "" : key.get() === null ? t("key.needed") : refused.message;
      find("#key-forget").hidden = key.get() === null;
      this.#dialog.showModal();
    }
    return this.#answer;
  }

  /** The button is there where a key is kept; a server that wants one makes it appear. */
  #showButton() {
    find("#key-open").hidden = key.get() === null;
  }

  #end(value) {
    key.set(value);
    this.#finish(value !== "");
    this.#dialog.close();
    this.#changed();
  }

  #finish(given) {
    this.#settle?.(given);
    this.#answer = null;
    this.#settle = null;
  }
}
