/** Two settings that are lists: stop sequences, and tokens with a bias. */

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { spelled } from "./tokens.js";

/** Returns typed text with its escapes \n, \t and \\ replaced. */
export function unescaped(typed) {
  return typed.replace(/\\([nt\\])/g, (_, c) => ({ n: "\n", t: "\t", "\\": "\\" })[c]);
}

export class StopList {
  #settings;
  #changed;
  #input = null;
  #box = h("ul", { class: "chips" });

  constructor(settings, changed) {
    this.#settings = settings;
    this.#changed = changed;
  }

  build() {
    const input = h("input", {
      type: "text", id: "field-stop", autocomplete: "off", placeholder: t("unset.stop"),
      "aria-describedby": "hint-stop error-stop", enterkeyhint: "done",
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.isComposing) return;
        event.preventDefault();
        this.#add(input);
      },
      onchange: () => this.#add(input),
    });
    this.#input = input;
    this.draw();
    return h("div", {}, h("label", { for: input.id }, t("field.stop")), input, this.#box);
  }

  /** Add what is typed and not added yet. */
  commit() {
    if (this.#input !== null) this.#add(this.#input);
  }

  draw() {
    this.#box.replaceChildren(...this.#settings.stop.map((stop, i) => h("li", { class: "chip" },
      h("bdi", {}, spelled(stop)), remover(spelled(stop), () => {
        this.#settings.stop.splice(i, 1);
        this.draw();
        this.#changed();
      }))));
  }

  #add(input) {
    const stop = unescaped(input.value);
    input.value = "";
    if (stop === "" || this.#settings.stop.includes(stop)) return;
    this.#settings.stop.push(stop);
    this.draw();
    this.#changed();
  }
}

export class BiasList {
  #settings;
  #tokenize;
  #changed;
  #input = null;
  #box = h("ul", { class: "chips biases" });

  constructor(settings, tokenize, changed) {
    this.#settings = settings;
    this.#tokenize = tokenize;
    this.#changed = changed;
  }

  build() {
    const input = h("input", {
      type: "text", id: "field-logit_bias", autocomplete: "off", placeholder: t("unset.logit_bias"),
      "aria-describedby": "hint-logit_bias error-logit_bias", enterkeyhint: "done",
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.isComposing) return;
        event.preventDefault();
        void this.#add(input);
      },
    });
    this.#input = input;
    this.draw();
    return h("div", {}, h("label", { for: input.id }, t("field.logit_bias")), input, this.#box);
  }

  /** Add what is typed and not added yet. */
  async commit() {
    if (this.#input !== null) await this.#add(this.#input);
  }

  draw() {
    this.#box.replaceChildren(...this.#settings.logit_bias.map((entry, i) => this.#chip(entry, i)));
  }

  #chip(entry, i) {
    const name = spelled(entry.text);
    const amount = h("input", {
      type: "number", min: -100, max: 100, step: 1, value: entry.bias,
      "aria-label": t("bias.amount", { token: name }),
      onchange: () => {
        const bias = Number(amount.value);
        if (amount.value !== "" && Math.abs(bias) <= 100) entry.bias = bias;
        amount.value = entry.bias;
        this.#changed();
      },
    });
    return h("li", { class: "chip" }, h("bdi", {}, name), h("span", { class: "id" }, `#${entry.id}`),
      amount, remover(name, () => {
        this.#settings.logit_bias.splice(i, 1);
        this.draw();
        this.#changed();
      }));
  }

  /** Add each token of the typed text with −100, because a ban is the most common use. */
  async #add(input) {
    const text = unescaped(input.value);
    if (text === "") return;
    const found = await this.#tokenize(text);
    if (found === null) return;
    input.value = "";
    const known = new Set(this.#settings.logit_bias.map((entry) => entry.id));
    for (const token of found) {
      if (!known.has(token.id)) this.#settings.logit_bias.push({ ...token, bias: -100 });
      known.add(token.id);
    }
    this.draw();
    this.#changed();
  }
}

function remover(name, run) {
  const label = t("list.remove", { name });
  return h("button", { type: "button", class: "remove", "aria-label": label, title: label, onclick: run }, "×");
}
