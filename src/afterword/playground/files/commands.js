/** What the reader can do by key or button: one place for both. */

import { find, h } from "./dom.js";
import { t } from "./i18n.js";
import { commandOf, listed } from "./keys.js";
import { severalOf } from "./request.js";

export class Commands {
  #parts;
  #runs = {
    continue: () => this.#write(() => this.#parts.session.continue()),
    several: () => this.#write(() => this.#parts.session.continue(severalOf(this.#parts.controls.settings))),
    regenerate: () => this.#write(() => this.#parts.session.regenerate()),
    score: () => this.#write(() => this.#parts.session.score()),
    stop: () => this.#stop(),
    back: () => this.#walk(-1),
    next: () => this.#walk(1),
    parent: () => this.#parts.session.climb(),
    gap: () => this.#turnGap(),
    map: () => this.#turnMap(),
    mark: () => this.#parts.branches.markHere(),
    undo: () => this.#parts.session.undo(),
    redo: () => this.#parts.session.redo(),
    keys: () => this.#showKeys(),
  };

  /** @param {object} parts of the page */
  constructor(parts) {
    this.#parts = parts;
    const buttons = {
      continue: "continue", several: "several", regenerate: "regenerate", score: "score", stop: "stop",
      "walk-back": "back", "walk-next": "next", gap: "gap", undo: "undo", "keys-open": "keys",
    };
    for (const [id, name] of Object.entries(buttons)) {
      find(`#${id}`).addEventListener("click", () => this.run(name));
    }
    find("#share-open").addEventListener("click", () => void this.#share());
    find("#look-open").addEventListener("click", () => find("#look").showModal());
    document.addEventListener("keydown", (event) => this.#key(event));
    // A text area's own undo does not know what the model wrote.
    parts.editor.area.addEventListener("beforeinput", (event) => {
      if (event.inputType !== "historyUndo" && event.inputType !== "historyRedo") return;
      event.preventDefault();
      this.run(event.inputType === "historyUndo" ? "undo" : "redo");
    });
  }

  run(name) {
    void this.#runs[name]();
  }

  #key(event) {
    if (document.querySelector("dialog[open]") !== null || event.isComposing) return;
    const found = commandOf(event);
    if (found === undefined || !this.#means(found.name, event)) return;
    if (found.name !== "stop") event.preventDefault();
    this.run(found.name);
  }

  /** Whether a key means this command where it was pressed. */
  #means(name, { target }) {
    const types = target.matches("textarea, input:not([type=range], [type=checkbox], [type=radio]), select");
    if (name === "keys") return !types;
    // Other fields have their own undo, and arrow keys of their own.
    if (["undo", "redo", "back", "next", "parent"].includes(name)) return !types || target.id === "text";
    return true;
  }

  /** Run a request of the page if its settings can be sent. */
  async #write(request) {
    const { controls, editor, models, notice, panel, session, stage } = this.#parts;
    if (session.running !== null) return;
    notice.clear();
    controls.clearErrors();
    if (models.isEmpty) {
      notice.refuse(t("problem.noModel"));
      return;
    }
    if (!(await this.#ready())) return;
    if (panel.isDrawer) panel.closeDrawer();
    stage.close();
    editor.area.focus({ preventScroll: true });
    await request();
  }

  /** Whether the settings can be sent. If not, the panel shows which one cannot. */
  async #ready() {
    const { controls, panel } = this.#parts;
    if (await controls.commit()) return true;
    panel.open("settings");
    controls.focusWrong();
    return false;
  }

  #stop() {
    const { session, stage, panel } = this.#parts;
    if (session.running !== null) session.stop();
    else if (stage.shown !== null) stage.close();
    else if (session.choices.length > 0) session.choose(-1);
    else panel.closeDrawer();
  }

  #turnGap() {
    const { session, editor, notice } = this.#parts;
    if (find("#gap").disabled) return;
    session.turnGap();
    notice.say(t(session.gap === null ? "said.joined" : "said.gap"));
    editor.area.focus();
  }

  #walk(step) {
    const { session, notice } = this.#parts;
    session.walk(step);
    const { fork } = session;
    if (fork !== null) notice.say(t("said.version", { number: fork.index + 1, count: fork.ids.length }));
  }

  #turnMap() {
    const { map, stage, panel } = this.#parts;
    if (stage.shown === find("#map")) {
      stage.close();
      return;
    }
    if (panel.isDrawer) panel.closeDrawer();
    map.open();
  }

  async #share() {
    if (!(await this.#ready())) return;
    const body = await this.#parts.body();
    if (body !== null) this.#parts.share.open(body);
  }

  #showKeys() {
    find("#shortcut-list").replaceChildren(...listed().flatMap(([words, shown]) => [
      h("dt", {}, t(words)), h("dd", {}, shown),
    ]));
    find("#shortcuts").showModal();
  }
}
