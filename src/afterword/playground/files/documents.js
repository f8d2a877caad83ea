/** The dialog of documents: open, name, delete, begin a new one. */

import { find, h } from "./dom.js";
import { moment, t } from "./i18n.js";
import { firstWords } from "./keeper.js";

export class Documents {
  #dialog = find("#documents");
  #keeper;
  #session;
  // The document that a second press removes.
  #doomed = null;

  /**
   * @param {import("./keeper.js").Keeper} keeper
   * @param {import("./session.js").Session} session
   */
  constructor(keeper, session) {
    this.#keeper = keeper;
    this.#session = session;
    find("#documents-open").addEventListener("click", () => void this.open());
    find("#document-new").addEventListener("click", () => {
      this.#dialog.close();
      void keeper.create();
    });
    find("#document-name").addEventListener("input", ({ target }) => {
      keeper.rename(target.value);
      this.#drawTitle();
    });
    keeper.addEventListener("opened", () => this.#drawTitle());
  }

  async open() {
    this.#session.keep();
    this.#doomed = null;
    await this.#draw();
    this.#dialog.showModal();
  }

  /** Show the name of the open document in the bar. */
  #drawTitle() {
    const title = this.#keeper.title || t("document.untitled");
    find("#documents-open bdi").textContent = title;
    document.title = this.#keeper.title === "" ? "Afterword" : `${title} – Afterword`;
  }

  /** The text has changed, so the first words may have. */
  follow() {
    if (this.#keeper.name === "") this.#drawTitle();
  }

  async #draw() {
    const name = find("#document-name");
    name.value = this.#keeper.name;
    name.placeholder = firstWords(this.#session.text) || t("document.untitled");
    const rows = await this.#keeper.list();
    find("#document-list").replaceChildren(...rows.map((row) => this.#row(row)));
    find("#documents-none").hidden = rows.length > 0;
  }

  #row({ id, name, page, edited }) {
    const title = name || firstWords(page?.text ?? "") || t("document.untitled");
    const isOpen = id === this.#keeper.id;
    const sure = this.#doomed === id;
    return h("li", { class: "document", "aria-current": isOpen ? "true" : null },
      h("button", {
        type: "button", class: "document-go", title: t("document.open"), disabled: this.#session.running !== null,
        onclick: () => {
          this.#dialog.close();
          if (!isOpen) void this.#keeper.open(id);
        },
      }, h("bdi", {}, title), h("span", { class: "hint" }, isOpen ? t("document.isOpen") : moment(edited))),
      h("button", {
        type: "button", class: sure ? "danger" : "quiet", title: t("document.remove"),
        "aria-label": t(sure ? "document.sureOf" : "document.removeOf", { title }),
        disabled: this.#session.running !== null,
        onclick: () => void this.#remove(id),
      }, t(sure ? "document.sure" : "document.remove")));
  }

  /** Ask once: a document that is removed is gone with all of its branches. */
  async #remove(id) {
    const sure = this.#doomed === id;
    this.#doomed = sure ? null : id;
    if (sure) await this.#keeper.remove(id);
    await this.#draw();
  }
}
