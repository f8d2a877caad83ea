/** The controls of a request: one for each field, with a hint and an error. */

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { accepts, fieldOf, FIELDS, fit, problems, rangeOf } from "./request.js";
import { BiasList, StopList } from "./lists.js";

const SLIDERS = ["temperature", "top_p"];
/** What always shows; everything else starts folded. */
const FIRST = ["temperature", "max_tokens", "stop"];
const GROUPS = [
  { key: "chat_template", fields: ["chat_template"] },
  { key: "sampling", fields: ["top_p", "min_p", "top_k", "seed"] },
  { key: "penalties", fields: ["presence_penalty", "frequency_penalty", "logit_bias"] },
  { key: "choices", fields: ["n", "best_of"] },
  { key: "logprobs", fields: ["logprobs"] },
  { key: "infill", fields: ["infill"] },
  { key: "advanced", fields: ["min_tokens", "ignore_eos"] },
];
const CHECKS = ["ignore_eos", "infill", "chat_template"];

export class Controls extends EventTarget {
  #form;
  #settings;
  #model = { limits: {}, gapless: null, template: "none" };
  #sent;
  #inputs = new Map();
  #errors = new Map();
  // Fields whose input is no value that can be sent. The settings keep the value before it.
  #wrong = new Set();
  #lists;

  /**
   * @param {HTMLElement} form
   * @param {object} settings changed in place
   * @param {(text: string) => Promise<{id: number, text: string}[]>} tokenize
   * @param {HTMLElement} sent shows the prompt below the switch of the chat template
   */
  constructor(form, settings, tokenize, sent) {
    super();
    this.#form = form;
    this.#sent = sent;
    this.#settings = settings;
    this.#lists = {
      stop: new StopList(settings, () => this.#changed()),
      logit_bias: new BiasList(settings, tokenize, () => this.#changed()),
    };
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Build the controls in the current language, with the values of the settings. */
  build() {
    const open = new Set(
      [...this.#form.querySelectorAll("details[open]")].map((group) => group.dataset.group),
    );
    this.#wrong.clear();
    this.#form.replaceChildren(
      h("div", { class: "group" }, ...FIRST.map((name) => this.#field(name))),
      ...GROUPS.map(({ key, fields }) => h("details", { open: open.has(key), "data-group": key, class: "group" },
        h("summary", {}, t(`group.${key}`)), ...fields.map((name) => this.#field(name)))),
    );
    this.follow(this.#model);
  }

  /** Show the settings after a change from outside. */
  refresh() {
    for (const field of FIELDS) {
      for (const input of this.#inputs.get(field.name)) input.value = this.#settings[field.name] ?? "";
    }
    for (const name of CHECKS) this.#inputs.get(name)[0].checked = this.#settings[name];
    this.#wrong.clear();
    for (const list of Object.values(this.#lists)) list.draw();
    this.clearErrors();
  }

  /**
   * Apply the operator's limits of the chosen model, and what it can.
   * @param {{limits: object, gapless: string|null, template: "offered"|"server"|"none"}} model
   */
  follow({ limits, gapless, template }) {
    this.#model = { limits, gapless, template };
    for (const field of FIELDS) {
      const { max } = rangeOf(field, limits);
      for (const input of this.#inputs.get(field.name)) input.max = max;
    }
    this.#able("infill", gapless);
    this.#able("chat_template", template === "server" ? "template.server" : null);
    this.#form.querySelector('[data-group="chat_template"]').hidden = template === "none";
    if (fit(this.#settings, limits)) this.refresh();
  }

  /** Enable a switch, or disable it with the words that say why. */
  #able(name, why) {
    this.#inputs.get(name)[0].disabled = why !== null;
    this.#form.querySelector(`#hint-${name}`).textContent = t(why ?? `hint.${name}`);
  }

  /**
   * Put what is typed into the settings. Resolves to whether they can be sent; if not, every field
   * that is wrong says why.
   */
  async commit() {
    await this.#lists.logit_bias.commit();
    this.#lists.stop.commit();
    const wrong = problems(this.#settings, this.#model.limits).filter(({ name }) => !this.#wrong.has(name));
    for (const { name, key, values } of wrong) this.#say(name, t(key, values));
    for (const name of this.#wrong) this.#say(name, this.#whyWrong(fieldOf(name)));
    return this.#wrong.size === 0 && wrong.length === 0;
  }

  /** Open the group of the first field that is wrong, and focus the field. */
  focusWrong() {
    const input = this.#form.querySelector('[aria-invalid="true"]:not([type="range"])');
    input?.closest("details")?.setAttribute("open", "");
    input?.focus();
  }

  get settings() {
    return this.#settings;
  }

  /** Show an error at its control. Returns false if no control has this name. */
  fail(param, message) {
    const name = (param ?? "").split(".")[0];
    const slot = this.#errors.get(name);
    if (slot === undefined) return false;
    slot.textContent = message;
    slot.closest("details")?.setAttribute("open", "");
    for (const input of this.#inputs.get(name) ?? []) input.setAttribute("aria-invalid", "true");
    slot.scrollIntoView({ block: "nearest" });
    return true;
  }

  clearErrors() {
    for (const slot of this.#errors.values()) slot.textContent = "";
    for (const inputs of this.#inputs.values()) {
      for (const input of inputs) input.removeAttribute("aria-invalid");
    }
  }

  #whyWrong(field) {
    return t(field.whole ? "error.whole" : "error.range", rangeOf(field, this.#model.limits));
  }

  #say(name, message) {
    this.#errors.get(name).textContent = message;
    for (const input of this.#inputs.get(name)) {
      if (message === "") input.removeAttribute("aria-invalid");
      else input.setAttribute("aria-invalid", "true");
    }
  }

  #field(name) {
    if (name === "chat_template") return h("div", {}, this.#check(name), this.#sent);
    if (CHECKS.includes(name)) return this.#check(name);
    return name in this.#lists ? this.#frame(name, this.#lists[name].build()) : this.#number(fieldOf(name));
  }

  #frame(name, ...content) {
    const error = h("p", { class: "error", id: `error-${name}`, role: "alert" });
    this.#errors.set(name, error);
    return h("div", { class: "field", "data-field": name }, ...content,
      h("p", { class: "hint", id: `hint-${name}` }, t(`hint.${name}`)), error);
  }

  #number(field) {
    const { name, step, min } = field;
    const common = { step, min, "aria-describedby": `hint-${name} error-${name}` };
    const number = h("input", {
      ...common, type: "number", id: `field-${name}`, inputmode: field.whole ? "numeric" : "decimal",
      placeholder: t(field.page === null ? `unset.${name}` : "unset"), autocomplete: "off",
    });
    const inputs = [number];
    if (SLIDERS.includes(name)) {
      inputs.push(h("input", { ...common, type: "range", max: field.max, "aria-label": t(`field.${name}`) }));
    }
    this.#inputs.set(name, inputs);
    for (const input of inputs) {
      input.value = this.#settings[name] ?? "";
      input.addEventListener("input", () => this.#set(field, input));
    }
    const label = h("label", { for: number.id }, t(`field.${name}`));
    return this.#frame(name, h("div", { class: "field-line" }, label, ...inputs.reverse()));
  }

  #set(field, input) {
    const { name } = field;
    const range = rangeOf(field, this.#model.limits);
    const value = input.value === "" ? null : Number(input.value);
    // If the text is no number the value is empty; only `badInput` tells the two apart.
    const wrong = input.validity.badInput || (value !== null && !accepts(field, value, range));
    this.#say(name, wrong ? this.#whyWrong(field) : "");
    for (const other of this.#inputs.get(name)) if (other !== input) other.value = input.value;
    if (wrong) {
      this.#wrong.add(name);
      return;
    }
    this.#wrong.delete(name);
    this.#settings[name] = value ?? (field.page === null ? null : field.api);
    this.#changed();
  }

  #check(name) {
    const box = h("input", {
      type: "checkbox", id: `field-${name}`, "aria-describedby": `hint-${name}`,
      onchange: () => {
        this.#settings[name] = box.checked;
        this.#changed();
      },
    });
    box.checked = this.#settings[name];
    this.#inputs.set(name, [box]);
    return this.#frame(name, h("div", { class: "field-line" },
      h("label", { for: box.id }, t(`field.${name}`)), box));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
