/** The share dialog: the request as a program, and a link to the current page. */

import { find, h } from "./dom.js";
import { t } from "./i18n.js";
import { toFragment } from "./link.js";
import { LANGUAGES } from "./snippets.js";
import { Tabs } from "./tabs.js";

const NAMES = { curl: "curl", python: "Python", javascript: "JavaScript" };

/** Copy text to the clipboard. Resolves to false if the browser does not allow it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch (error) {
    // Without a secure context there is no clipboard; with one it may be forbidden.
    if (error instanceof TypeError || error.name === "NotAllowedError") return false;
    throw error;
  }
}

export class Share {
  #dialog = find("#share");
  #page;
  #body = {};
  #tabs;

  /** @param {() => {keyed: boolean, settings: object, text: string, suffix: string}} page */
  constructor(page) {
    this.#page = page;
    const list = find("#share-tabs");
    list.append(...Object.keys(LANGUAGES).map((name, i) => h("button", {
      type: "button", role: "tab", id: `share-${name}`, "data-view": name, "aria-controls": "share-code",
      "aria-selected": i === 0, tabindex: i === 0 ? 0 : -1, title: NAMES[name],
    }, NAMES[name])));
    this.#tabs = new Tabs(list, () => this.#draw());
    find("#share-copy").addEventListener("click", () => this.#copy(find("#share-code").textContent));
    find("#share-link").addEventListener("click", () => void this.#copyLink());
  }

  /** Show a request. @param {object} body */
  open(body) {
    this.#body = body;
    this.#draw();
    find("#share-said").textContent = "";
    this.#dialog.showModal();
  }

  #draw() {
    const { keyed } = this.#page();
    const call = { base: location.origin, body: this.#body, keyed };
    const code = LANGUAGES[this.#tabs.chosen.dataset.view](call);
    find("#share-code").textContent = code;
  }

  async #copyLink() {
    const { settings, text, suffix } = this.#page();
    const fragment = await toFragment({ settings, text, suffix });
    history.replaceState(null, "", `#${fragment}`);
    await this.#copy(location.href);
  }

  async #copy(text) {
    const done = await copy(text);
    find("#share-said").textContent = t(done ? "share.copied" : "share.byHand");
    if (!done) getSelection().selectAllChildren(find("#share-code"));
  }
}
