/** The controls of a request: one for each field, with a hint and an error. */

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { accepts, FIELDS, rangeOf } from "./request.js";
import { BiasList, StopList } from "./lists.js";

const SLIDERS = ["temperature", "top_p"];
const GROUPS = [
  { key: "sampling", open: true, fields: ["temperature", "top_p", "max_tokens", "seed"] },
  { key: "choices", open: true, fields: ["n", "best_of", "logprobs"] },
  { key: "penalties", open: false, fields: ["presence_penalty", "frequency_penalty"] },
  { key: "advanced", open: false, fields: ["top_k", "min_p", "min_tokens"] },
];

export class Controls extends EventTarget {
  #form;
  #settings;
  #limits = {};
  #inputs = new Map();
  #errors = new Map();
  #lists;

  /**
   * @param {HTMLElement} form
   * @param {object} settings changed in place
   * @param {(text: string) => Promise<{id: number, text: string}[]>} tokenize
   */
  constructor(form, settings, tokenize) {
    super();
    this.#form = form;
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
    const first = this.#form.childElementCount === 0;
    const groups = GROUPS.map((group) => {
      const fields = group.fields.map((name) => this.#number(fieldOf(name)));
      if (group.key === "sampling") fields.push(this.#list("stop"));
      if (group.key === "advanced") fields.push(this.#check("ignore_eos"));
      if (group.key === "penalties") fields.push(this.#list("logit_bias"));
      const isOpen = first ? group.open : open.has(group.key);
      return h("details", { open: isOpen, "data-group": group.key, class: "group" },
        h("summary", {}, t(`group.${group.key}`)), ...fields);
    });
    this.#form.replaceChildren(...groups);
    this.limit(this.#limits);
  }

  /** Show the settings after a change from outside. */
  refresh() {
    for (const field of FIELDS) {
      for (const input of this.#inputs.get(field.name)) input.value = this.#settings[field.name] ?? "";
    }
    this.#inputs.get("ignore_eos")[0].checked = this.#settings.ignore_eos;
    for (const list of Object.values(this.#lists)) list.draw();
    this.clearErrors();
  }

  /** Apply the operator's limits of the chosen model. */
  limit(limits) {
    this.#limits = limits;
    for (const field of FIELDS) {
      const { max } = rangeOf(field, limits);
      for (const input of this.#inputs.get(field.name) ?? []) input.max = max;
    }
  }

  /** Show an error at its control. Returns false if no control has this name. */
  fail(param, message) {
    const name = (param ?? "").split(".")[0];
    const slot = this.#errors.get(name);
    if (slot === undefined) return false;
    slot.textContent = message;
    slot.closest("details").open = true;
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
    const range = rangeOf(field, this.#limits);
    const value = input.value === "" ? null : Number(input.value);
    // If the text is no number the value is empty; only `badInput` tells the two apart.
    const wrong = input.validity.badInput || (value !== null && !accepts(field, value, range));
    const message = wrong ? t(field.whole ? "error.whole" : "error.range", range) : "";
    this.#errors.get(name).textContent = message;
    for (const other of this.#inputs.get(name)) {
      if (wrong) other.setAttribute("aria-invalid", "true");
      else other.removeAttribute("aria-invalid");
      if (other !== input) other.value = input.value;
    }
    if (wrong) return;
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

  #list(name) {
    return this.#frame(name, this.#lists[name].build());
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

function fieldOf(name) {
  return FIELDS.find((field) => field.name === name);
}
