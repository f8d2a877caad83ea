/** The card of a token: its alternatives as bars. Each bar is a button that branches there. */

import { h } from "./dom.js";
import { percent, t } from "./i18n.js";
import { isPartial, logprobOf, spelled } from "./tokens.js";

const CLOSE_AFTER_MS = 260;
const SHOWN = 12;
const GAP_PX = 6;

export class Card extends EventTarget {
  #box;
  #index = -1;
  #closing;

  constructor(box) {
    super();
    this.#box = box;
    box.addEventListener("pointerenter", () => clearTimeout(this.#closing));
    box.addEventListener("pointerleave", () => this.closeSoon());
    box.addEventListener("keydown", (event) => this.#key(event));
    box.addEventListener("focusout", (event) => {
      if (!box.contains(event.relatedTarget)) this.closeSoon();
    });
  }

  get index() {
    return this.#index;
  }

  /** Show the card of a group below its place in the text, or above if below has no room. */
  open(index, group, place) {
    clearTimeout(this.#closing);
    if (index === this.#index && !this.#box.hidden) return;
    this.#index = index;
    this.#box.replaceChildren(this.#closer(), ...this.#content(group));
    this.#box.hidden = false;
    if (this.isSheet) return;
    const { offsetWidth: width, offsetHeight: height } = this.#box;
    const [below, above] = [place.bottom + GAP_PX, place.top - GAP_PX - height];
    const [top, bottom] = place.inView;
    const fits = below + height <= bottom || above < top;
    this.#box.style.left = `${Math.max(0, Math.min(place.left, place.width - width))}px`;
    this.#box.style.top = `${fits ? below : above}px`;
  }

  /** Whether the card is a sheet at the foot of a small screen. */
  get isSheet() {
    return matchMedia("(max-width: 40rem)").matches;
  }

  get height() {
    return this.#box.offsetHeight;
  }

  closeSoon() {
    clearTimeout(this.#closing);
    // A sheet has a close button, and no pointer that could leave.
    if (this.isSheet) return;
    this.#closing = setTimeout(() => {
      if (!this.#box.contains(document.activeElement)) this.close();
    }, CLOSE_AFTER_MS);
  }

  close() {
    clearTimeout(this.#closing);
    if (this.#box.hidden) return;
    this.#box.hidden = true;
    this.#index = -1;
    this.dispatchEvent(new Event("closed"));
  }

  /** Focus the first alternative. Returns false if there is none to take. */
  enter() {
    const first = this.#box.querySelector("button.bar:not([disabled])");
    first?.focus();
    return first !== null;
  }

  /** Take the alternative with this number, counted from 1. */
  take(number) {
    this.#box.querySelectorAll("button.bar")[number - 1]?.click();
  }

  #closer() {
    return h("button", {
      type: "button", class: "remove card-close", "aria-label": t("dialog.close"), title: t("dialog.close"),
      onclick: () => {
        this.close();
        this.dispatchEvent(new Event("back"));
      },
    }, "×");
  }

  #content(group) {
    const { tokens } = group;
    const [first] = tokens;
    const total = logprobOf(group);
    const title = h("p", { class: "card-token" },
      h("bdi", {}, tokens.map((token) => spelled(token.text)).join(" + ")),
      h("span", {}, total === null ? t("card.first") : percent(Math.exp(total))));
    const parts = tokens.length > 1
      ? [h("p", { class: "card-note" }, t("card.parts", { count: tokens.length }))] : [];
    if (first.top.length < 2) {
      const note = first.logprob === null ? t("card.firstNote") : t("card.none");
      return [title, ...parts, h("p", { class: "card-note" }, note)];
    }
    const shown = first.top.slice(0, SHOWN);
    const rows = shown.map(([text, logprob], i) => this.#row(first, text, logprob, i));
    const sum = first.top.reduce((all, [, logprob]) => all + Math.exp(logprob), 0);
    const other = Math.max(0, 1 - sum);
    return [
      title, ...parts,
      h("ol", { class: "bars", "aria-label": t("card.alternatives") }, ...rows,
        h("li", { class: "bar other" }, h("span", { class: "bar-token" }, t("card.other")),
          bar(other), h("span", { class: "bar-value" }, percent(other)))),
      h("p", { class: "card-note keys" }, t("card.keys")),
    ];
  }

  #row(token, text, logprob, i) {
    const probability = Math.exp(logprob);
    const chosen = text === token.text;
    const partial = isPartial(text);
    const name = t(chosen ? "card.chosen" : partial ? "card.partial" : "card.take", {
      token: spelled(text), percent: percent(probability),
    });
    const button = h("button", {
      type: "button", class: `bar${chosen ? " chosen" : ""}`, "aria-label": name, title: name,
      disabled: chosen || partial,
      onclick: () => this.dispatchEvent(new CustomEvent("take", {
        detail: { index: this.#index, alternative: [text, logprob] },
      })),
    },
    h("span", { class: "bar-number", "aria-hidden": "true" }, i < 9 ? String(i + 1) : ""),
    h("bdi", { class: "bar-token" }, spelled(text)), bar(probability),
    h("span", { class: "bar-value" }, percent(probability)));
    return h("li", {}, button);
  }

  #key(event) {
    const buttons = [...this.#box.querySelectorAll("button.bar:not([disabled])")];
    const here = buttons.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      buttons[(here + step + buttons.length) % buttons.length]?.focus();
    } else if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      this.close();
      this.dispatchEvent(new Event("back"));
    }
  }
}

function bar(share) {
  const fill = h("span", { class: "bar-fill" });
  fill.style.width = `${Math.max(0.5, share * 100)}%`;
  return h("span", { class: "bar-track", "aria-hidden": "true" }, fill);
}
