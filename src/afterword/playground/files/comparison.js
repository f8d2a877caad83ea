/** Two texts side by side on the stage, with their differences marked. */

import { find, h } from "./dom.js";
import { compare } from "./diff.js";
import { number, percent, t } from "./i18n.js";
import { figures } from "./tokens.js";
import { groupsOf, textOf } from "./tree.js";

const MARKS = ["del", "ins"];

export class Comparison {
  #session;
  #stage;

  constructor(session, stage) {
    this.#session = session;
    this.#stage = stage;
  }

  /** @param {[string, string]} ids */
  show(ids) {
    const { tree } = this.#session;
    const box = find("#comparison");
    const sides = compare(...ids.map((id) => textOf(tree, id)));
    box.replaceChildren(...sides.map((parts, i) => {
      const { mean, tokens } = figures(groupsOf(tree, ids[i]));
      const note = mean === null ? "" : `${t("count.tokens", { count: number(tokens) })} · ⌀ ${percent(Math.exp(mean))}`;
      return h("section", { class: "side" },
        h("header", {},
          h("h3", {}, h("bdi", {}, tree.get(ids[i]).name || t("compare.side", { number: i + 1 }))),
          h("span", { class: "side-note" }, note),
          h("button", {
            type: "button", title: t("compare.go"), onclick: () => {
              this.#stage.close();
              this.#session.go(ids[i]);
            },
          }, t("compare.open"))),
        h("p", { dir: "auto" }, ...parts.map(({ same, text }) => (same ? text : h(MARKS[i], {}, text)))));
    }));
    this.#stage.show(box, t("compare.title"));
  }

  hide() {
    if (this.#stage.shown === find("#comparison")) this.#stage.close();
  }
}
