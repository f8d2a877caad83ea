/** The editor: the input, its keys, the card of alternatives, the strip and the figures. */

import { Card } from "./card.js";
import { eachFrame, find, settled } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { Strip } from "./strip.js";
import { Input } from "./input.js";
import { figures, groupAt, logprobOf, spelled } from "./tokens.js";

const PAUSE_MS = 900;
const SAY_AFTER_MS = 500;
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

export class Editor {
  #session;
  #notice;
  #input;
  #strip = new Strip(find("#strip"));
  #card = new Card(find("#card"));
  #run = 0;
  // What the last drawing was made from; the same values draw nothing.
  #drawn = [];
  #drawLater = eachFrame(() => this.#draw());
  #sayLater = settled(SAY_AFTER_MS, (words) => this.#notice.say(words));
  #pauseLater = settled(PAUSE_MS, () => {
    this.#run += 1;
  });

  constructor(session, notice) {
    this.#session = session;
    this.#notice = notice;
    this.#input = new Input({
      area: find("#text"), overlay: find("#overlay"), view: find("#view"),
      marks: [find("#gap-start"), find("#gap-end")],
    });
    this.#followSession();
    this.#followReader();
  }

  get area() {
    return this.#input.area;
  }

  /** The selection in the text, as two offsets. */
  get selection() {
    return this.#input.selection;
  }

  /** Draw again after colours or words have changed. */
  redraw() {
    this.#drawn = [];
    this.#drawLater();
  }

  #followSession() {
    const { area } = this.#input;
    this.#session.addEventListener("text", ({ detail: caret }) => {
      this.#input.show(this.#session.text, caret ?? undefined);
      if (caret !== null) this.#input.reveal(caret);
      this.#card.close();
    });
    this.#session.addEventListener("grown", ({ detail: { at, text } }) => {
      this.#input.insert(at, text);
      this.#input.mark(this.#session.groups, this.#session.valid);
      this.#drawLater();
    });
    this.#session.addEventListener("gap", () => this.#input.showGap(this.#session.gap));
    this.#session.addEventListener("marks", this.#drawLater);
    this.#session.addEventListener("running", () => {
      const { running } = this.#session;
      if (running === null) this.#input.catchUp();
      area.readOnly = running !== null;
      area.setAttribute("aria-busy", String(running !== null));
      if (running !== null) this.#card.close();
    });
  }

  #followReader() {
    const input = this.#input;
    const { area } = input;
    input.addEventListener("edit", () => {
      this.#card.close();
      this.#session.edit(input.value, `typing ${this.#run}`);
      this.#pauseLater();
    });
    input.addEventListener("hover", ({ detail: index }) => {
      if (index === -1) this.#card.closeSoon();
      else this.#open(index);
    });
    input.addEventListener("leave", () => this.#card.closeSoon());
    area.addEventListener("keydown", (event) => this.#key(event));
    area.addEventListener("keyup", (event) => {
      if (ARROWS.includes(event.key) && !event.altKey) this.#openAtCaret();
    });
    area.addEventListener("click", () => this.#openAtCaret());
    document.addEventListener("selectionchange", this.#drawLater);
    area.addEventListener("select", this.#drawLater);
    this.#card.addEventListener("closed", () => input.point(-1));
    this.#card.addEventListener("back", () => area.focus());
    this.#card.addEventListener("take", ({ detail }) => {
      this.#card.close();
      area.focus();
      void this.#session.branch(detail.index, detail.alternative);
    });
    this.#strip.addEventListener("hover", ({ detail: index }) => this.#open(index));
    this.#strip.addEventListener("leave", () => this.#card.closeSoon());
    this.#strip.addEventListener("go", ({ detail: index }) => {
      const { start } = this.#session.groups[index];
      area.focus();
      input.select(start, start);
      input.reveal(start);
      this.#open(index);
    });
    find("#measure").addEventListener("change", (event) => {
      this.#strip.measure = event.target.value;
    });
  }

  #key(event) {
    if (event.altKey && event.key === "ArrowDown" && this.#openAtCaret() && this.#card.enter()) {
      event.preventDefault();
    } else if (event.altKey && /^Digit[1-9]$/.test(event.code) && this.#openAtCaret()) {
      event.preventDefault();
      this.#card.take(Number(event.code.slice(-1)));
    } else if (event.key === "Escape" && !find("#card").hidden) {
      event.stopPropagation();
      this.#card.close();
    }
  }

  /**
   * Open the card of the token after the caret, or of the last token at the end of the text.
   * Returns false if there is no such token.
   */
  #openAtCaret() {
    const [start, end] = this.#input.selection;
    if (start !== end || this.#session.running !== null) {
      this.#card.close();
      return false;
    }
    // The reader may be quicker than the frame that draws what changed.
    this.#draw();
    const { groups, valid, text } = this.#session;
    let index = this.#input.indexAt(start);
    if (index === -1 && start === text.length && valid === start) index = groups.length - 1;
    if (index === -1) {
      this.#card.close();
      return false;
    }
    this.#open(index);
    const group = groups[index];
    const logprob = logprobOf(group);
    if (logprob !== null) {
      this.#sayLater(t("card.said", {
        token: group.tokens.map((token) => spelled(token.text)).join(" "),
        percent: percent(Math.exp(logprob)),
      }));
    }
    return true;
  }

  #open(index) {
    if (this.#session.running !== null) return;
    const { start, end } = this.#session.groups[index];
    this.#card.open(index, this.#session.groups[index], this.#input.place(index));
    // On small screens the card lies over the end of the page.
    if (this.#card.isSheet) this.#input.reveal(start, end > start ? this.#card.height : 0);
    this.#input.point(index);
  }

  #draw() {
    const { groups, valid } = this.#session;
    this.#input.mark(groups, valid);
    const [start, end] = this.#input.selection;
    const some = start !== end;
    const scored = groupAt(groups, valid);
    const now = [groups, scored, some, some && start, some && end];
    if (now.every((part, i) => part === this.#drawn[i])) return;
    this.#drawn = now;
    find("#strip-box").hidden = scored === 0;
    this.#strip.show(groups, valid, some ? [start, end] : null);
    const found = some ? figures(groups, start, Math.min(end, valid)) : figures(groups, 0, valid);
    find("#figures").textContent = found.tokens === 0 ? "" : t(some ? "figures.selection" : "figures.all", {
      tokens: number(found.tokens), total: number(found.total, 2), mean: number(found.mean, 3),
      perplexity: number(found.perplexity, 2),
    });
  }
}
