/** The prompt as it is sent, for models with a chat template: the text and what the template adds. */

import { h, settled } from "./dom.js";
import { t } from "./i18n.js";
import { partsOf } from "./template.js";

const WAIT_MS = 350;

export class Sent {
  box = h("div", { class: "sent", hidden: true });

  #messages;
  #render;
  #asked = 0;

  /** Draw again when typing pauses. */
  follow = settled(WAIT_MS, () => void this.draw());

  /**
   * @param {() => import("./template.js").Message[]|null|undefined} messages of the request that
   *   Continue would send, null if it sends the text as it is, undefined if that is not known now
   * @param {(messages: import("./template.js").Message[]) => Promise<object|null>} render
   */
  constructor(messages, render) {
    this.#messages = messages;
    this.#render = render;
    // A group that opens shows what was not drawn.
    document.addEventListener("toggle", ({ target }) => target.contains(this.box) && this.follow(), true);
  }

  async draw() {
    const messages = this.#messages();
    if (messages === undefined) return;
    this.#asked += 1;
    const request = this.#asked;
    this.box.hidden = messages === null;
    if (messages === null || this.box.closest("details:not([open]), [hidden]") !== null) return;
    const found = await this.#render(messages);
    // The text has changed since, or the server did not answer.
    if (request !== this.#asked || found === null) return;
    const parts = partsOf(found, messages)
      .map(({ text, at }) => h(at === null ? "span" : "strong", {}, h("bdi", {}, text)));
    const code = h("pre", { class: "code", tabindex: "0", role: "group", "aria-label": t("sent.title") }, ...parts);
    this.box.replaceChildren(h("h2", {}, t("sent.title")), code, h("p", { class: "hint" }, t("sent.hint")));
    // The model goes on at the end.
    code.scrollTop = code.scrollHeight;
  }
}

/** Returns `ask` with a memory of one: the same question again gets the same answer. */
export function remembering(ask) {
  let asked = "";
  let answer = null;
  return async (...question) => {
    const now = JSON.stringify(question);
    if (now !== asked) answer = ask(...question);
    asked = now;
    const found = await answer;
    // A question that failed is asked again.
    if (found === null && now === asked) asked = "";
    return found;
  };
}
