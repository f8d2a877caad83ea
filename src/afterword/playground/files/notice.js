/** Errors with advice, news, and announcements for screen readers. */

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

/** Returns what to do about an error, in the reader's language; may be empty. */
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

  /** Show an error: what happened, what to do, and a button that tries again. */
  show(error, retry = null) {
    const what = error instanceof ApiError ? error.message
      : t(error instanceof Unreachable ? "problem.unreachable"
        : error instanceof Interrupted ? "problem.interrupted"
          : error instanceof ChangedText ? "problem.changed" : "problem.page");
    this.#fill("error", what, advice(error), retry);
  }

  /** Show why the page cannot use what the reader gave. */
  refuse(words) {
    this.#fill("error", words, "", null);
  }

  /** Show news that need no action. */
  tell(words) {
    this.#fill("news", words, "", null);
  }

  clear() {
    this.#box.hidden = true;
    this.#box.replaceChildren();
  }

  /** Announce words to screen readers only. */
  say(words) {
    this.#said.textContent = words;
  }

  #fill(kind, what, todo, retry) {
    this.#box.dataset.kind = kind;
    this.#box.hidden = false;
    this.#box.replaceChildren(
      h("p", {}, h("strong", {}, h("bdi", {}, what)), todo === "" ? null : h("span", {}, ` ${todo}`)),
      retry === null ? "" : h("button", { type: "button", title: t("notice.retry"), onclick: retry }, t("notice.retry")),
      h("button", {
        type: "button", class: "remove", "aria-label": t("notice.close"), title: t("notice.close"), onclick: () => this.clear(),
      }, "×"),
    );
  }
}
