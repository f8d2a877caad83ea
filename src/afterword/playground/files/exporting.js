/** Files: the export dialog, and the import of branches. */

import { find, h } from "./dom.js";
import { number, t } from "./i18n.js";
import { fileOf, FORMATS } from "./passages.js";
import { copy } from "./share.js";
import { BadTree, fromJson, toJson } from "./treefile.js";

const MOST_BYTES = 64 * 1024 * 1024;

/** Dispatches `imported` with a tree and one of its nodes, and `refused` with words. */
export class Exporting extends EventTarget {
  #dialog = find("#export");
  #session;
  #title;
  #format = FORMATS[0];

  /**
   * @param {import("./session.js").Session} session
   * @param {() => string} title names the document
   */
  constructor(session, title) {
    super();
    this.#session = session;
    this.#title = title;
    find("#export-open").addEventListener("click", () => this.#open());
    find("#export-save").addEventListener("click", () => this.#save());
    find("#export-copy").addEventListener("click", () => void this.#copy());
    const file = find("#import-file");
    find("#import-open").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      void this.#import(file.files[0]);
      // The reader can choose the same file again after a repair.
      file.value = "";
    });
  }

  #open() {
    find("#export-said").textContent = "";
    find("#export-formats").replaceChildren(...FORMATS.map((name) => h("label", { class: "choice-line" },
      h("input", {
        type: "radio", name: "export-format", value: name, checked: name === this.#format,
        onchange: () => {
          this.#format = name;
        },
      }),
      h("span", {}, h("strong", {}, t(`export.${name}`)), h("span", { class: "hint" }, t(`export.${name}.hint`))))));
    this.#dialog.showModal();
  }

  #file() {
    this.#session.keep();
    const { tree, at } = this.#session;
    if (this.#format === "tree") {
      return { name: "branches.json", type: "application/json", text: toJson(tree) };
    }
    return fileOf(this.#format, { tree, at, title: this.#title() });
  }

  #save() {
    const { name, type, text } = this.#file();
    const url = URL.createObjectURL(new Blob([text], { type }));
    h("a", { href: url, download: name }).click();
    // The download has started by then.
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    this.#dialog.close();
  }

  async #copy() {
    const done = await copy(this.#file().text);
    find("#export-said").textContent = t(done ? "share.copied" : "export.notCopied");
  }

  async #import(file) {
    if (file === undefined) return;
    try {
      if (file.size > MOST_BYTES) throw new BadTree("import.tooLong", { most: number(MOST_BYTES) });
      const tree = fromJson(await file.text());
      const last = [...tree.keys()].at(-1);
      this.dispatchEvent(new CustomEvent("imported", { detail: { tree, at: last } }));
    } catch (error) {
      if (!(error instanceof BadTree)) throw error;
      this.dispatchEvent(new CustomEvent("refused", { detail: t(error.key, error.values) }));
    }
  }
}
