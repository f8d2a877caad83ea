/** Where the page says what went wrong and what to do about it, and tells screen readers the news. */

import { ApiError, Interrupted, Unreachable } from "./api.js";
import { ChangedText } from "./runner.js";
import { find, h } from "./dom.js";
import { number, t } from "./i18n.js";

const HINTS = {
  context_length_exceeded: "advice.context",
  model_not_found: "advice.model",
  engine_overloaded: "advice.busy",
  rate_limit_exceeded: "advice.rate",
  insufficient_quota: "advice.quota",
  invalid_api_key: "advice.key",
};

/** What to do about an error, in the reader's language; empty where nothing is known. */
export function advice(error) {
  if (error instanceof Unreachable) return t("advice.unreachable");
  if (error instanceof Interrupted) return t("advice.interrupted");
  if (error instanceof ChangedText) return t("advice.changed");
  if (!(error instanceof ApiError)) return t("advice.page");
  const words = [];
  if (Object.hasOwn(HINTS, error.code ?? "")) words.push(t(HINTS[error.code]));
  if (error.retryAfter_s !== null) words.push(t("advice.wait", { seconds: number(error.retryAfter_s) }));
  return words.join(" ");
}

export class Notice {
  #box = find("#notice");
  #said = find("#said");

  /** An error by the text: what happened, what to do, and a button that does it. */
  show(error, retry = null) {
    const what = error instanceof ApiError ? error.message
      : t(error instanceof Unreachable ? "problem.unreachable"
        : error instanceof Interrupted ? "problem.interrupted"
          : error instanceof ChangedText ? "problem.changed" : "problem.page");
    this.#fill("error", what, advice(error), retry);
  }

  /** Something the reader gave that cannot be taken, said in whole sentences. */
  refuse(words) {
    this.#fill("error", words, "", null);
  }

  /** News that need no action. */
  tell(words) {
    this.#fill("news", words, "", null);
  }

  clear() {
    this.#box.hidden = true;
    this.#box.replaceChildren();
  }

  /** For screen readers only. */
  say(words) {
    this.#said.textContent = words;
  }

  #fill(kind, what, todo, retry) {
    this.#box.dataset.kind = kind;
    this.#box.hidden = false;
    this.#box.replaceChildren(
      h("p", {}, h("strong", {}, h("bdi", {}, what)), todo === "" ? null : h("span", {}, ` ${todo}`)),
      retry === null ? "" : h("button", { type: "button", onclick: retry }, t("notice.retry")),
      h("button", {
        type: "button", class: "remove", "aria-label": t("notice.close"), onclick: () => this.clear(),
      }, "×"),
    );
  }
}
