/** Choices side by side, while the model writes them. */

import { eachFrame, find, h } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { tooltip } from "./keys.js";
import { figures } from "./tokens.js";

export class Choices {
  #box;
  #session;
  #made = [];

  constructor(box, session) {
    this.#box = box;
    this.#session = session;
    session.addEventListener("choices", eachFrame(() => this.#show()));
    session.addEventListener("running", eachFrame(() => this.#show()));
  }

  #show() {
    const { choices } = this.#session;
    this.#box.hidden = choices.length === 0;
    if (this.#made.length !== choices.length) {
      this.#made = choices.map((_, i) => this.#column(i));
      const title = t("choices.title", { count: choices.length });
      const close = h("button", {
        type: "button", class: "quiet", title: tooltip(t("choices.close"), "stop"),
        onclick: () => this.#session.choose(-1),
      }, t("choices.close"));
      this.#box.replaceChildren(
        h("header", {}, h("h2", {}, title), close),
        // It scrolls on small screens, so the keyboard needs a way in.
        h("div", { class: "columns", tabindex: 0, role: "group", "aria-label": title }, ...this.#made.map((made) => made.box)),
      );
    }
    choices.forEach((choice, i) => this.#fill(this.#made[i], choice));
  }

  #column(i) {
    const text = document.createTextNode("");
    const note = h("span", { class: "choice-note" });
    const take = h("button", {
      type: "button", title: t("choices.tip"), onclick: () => {
        // The button goes, so the focus needs a place.
        find("#text").focus({ preventScroll: true });
        this.#session.choose(i);
      },
    }, t("choices.take", { number: i + 1 }));
    const box = h("article", { class: "choice" }, h("p", { class: "choice-text", dir: "auto" }, text), h("footer", {}, note, take));
    return { box, text, note, take };
  }

  #fill(made, choice) {
    const { reader, finish, node } = choice;
    // A text that grows is not laid out anew.
    if (reader.text.startsWith(made.text.data)) made.text.appendData(reader.text.slice(made.text.length));
    else made.text.data = reader.text;
    made.take.disabled = node === undefined;
    const { mean, tokens } = figures(reader.groups);
    made.note.textContent = [
      finish === null ? "…" : t(`finish.${finish}`),
      t("count.tokens", { count: number(tokens) }),
      mean === null ? "" : `⌀ ${percent(Math.exp(mean))}`,
    ].filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
  }
}
