/** The foot of the page: what a press does now, how much is written, and how fast. */

import { eachFrame, find, write } from "./dom.js";
import { number, t } from "./i18n.js";
import { severalOf } from "./request.js";

export class Dock {
  #session;
  #settings;
  #models;
  #found;
  // The answer is not counted yet by the server, so what was measured is added.
  #awaited = false;

  /** Draw again before the next frame. */
  draw = eachFrame(() => this.#draw());

  /**
   * @param {{session: import("./session.js").Session, settings: object,
   *   models: import("./models.js").Models, found: () => object|null}} given
   *   `found` returns the last answer of /tokenize
   */
  constructor({ session, settings, models, found }) {
    this.#session = session;
    this.#settings = settings;
    this.#models = models;
    this.#found = found;
    for (const type of ["text", "grown", "gap", "tree", "marks", "running", "choices", "settings"]) {
      session.addEventListener(type, this.draw);
    }
    document.addEventListener("selectionchange", this.draw);
    session.addEventListener("running", () => {
      if (session.running?.kind === "writing") this.#awaited = session.choices.length === 0;
    });
  }

  /** The server has counted the tokens of the text. */
  counted() {
    if (this.#session.running?.kind !== "writing") this.#awaited = false;
    this.draw();
  }

  #draw() {
    const { running, text, canUndo, gap, canRegenerate } = this.#session;
    const busy = running !== null;
    find("#continue").hidden = busy;
    find("#stop").hidden = !busy;
    find("#score").disabled = busy || text === "";
    find("#new").disabled = busy;
    find("#undo").disabled = busy || !canUndo;
    find("#regenerate").disabled = busy || !canRegenerate;
    find("#several").disabled = busy;
    write("#several", t("branches.several", { count: number(severalOf(this.#settings)) }));
    find("#gap").hidden = !this.#models.fills && gap === null;
    find("#gap").disabled = busy;
    find("#gap").setAttribute("aria-pressed", String(gap !== null));
    write("#gap", t(gap === null ? "action.gap" : "action.join"));
    // It is hidden, and in a chat its words cost a look at the whole text.
    if (!busy) this.#drawContinue();
    this.#drawWalk(busy);
    this.#drawCount();
  }

  #drawContinue() {
    const { place, text, choices, answers } = this.#session;
    const key = place.fills ? "action.fill" : answers ? "action.answer"
      : place.start < text.length && choices.length === 0 ? "action.here" : "action.continue";
    write("#continue-words", t(key));
  }

  #drawWalk(busy) {
    const fork = busy || this.#session.choices.length > 0 ? null : this.#session.fork;
    find("#walk").hidden = fork === null;
    if (fork === null) return;
    write("#walk-where", `${number(fork.index + 1)}\u2009/\u2009${number(fork.ids.length)}`);
  }

  #drawCount() {
    const { meter } = this.#session;
    const found = this.#found();
    const written = this.#awaited ? (meter?.tokens ?? 0) : 0;
    write("#count", found === null ? "" : t("count.of", {
      count: number(found.count + written), context: number(found.max_model_len),
    }));
    write("#speed", meter === null || meter.first_s === null ? this.#patience : [
      t("count.tokens", { count: number(meter.tokens) }),
      meter.tokens_per_s === null ? ""
        : t("speed.rate", { rate: number(meter.tokens_per_s, meter.tokens_per_s < 10 ? 1 : 0) }),
      t("speed.first", { seconds: number(meter.first_s, 2) }),
    ].filter(Boolean).join(" · "));
  }

  /** Why the first token takes long, if it does. */
  get #patience() {
    const { running, place } = this.#session;
    const searches = running?.kind === "writing" && place.fills && this.#models.limits.infill === "search";
    return searches ? t("speed.search") : "";
  }
}
