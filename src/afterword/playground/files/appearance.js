/** How the page looks: language, colours, tints, font, size and width, chosen in one dialog. */

import { find, h } from "./dom.js";
import { choose, language, preferred, t } from "./i18n.js";
import { LANGUAGES } from "./lang/index.js";
import { isCode } from "./prose.js";
import { preference } from "./storage.js";

/** The choices of each preference; the first one is the default. */
const CHOICES = {
  theme: ["auto", "light", "dark"],
  tints: ["full", "underline", "hover", "off"],
  strip: ["shown", "hidden"],
  font: ["auto", "serif", "sans", "mono"],
  size: ["m", "s", "l", "xl"],
  width: ["m", "narrow", "wide", "full"],
};
/** The order in which the dialog shows them, where it is not the one above. */
const SHOWN = { size: ["s", "m", "l", "xl"], width: ["narrow", "m", "wide", "full"] };

/** Set the language before anything is built: the reader's choice, else the browser's. */
export function settleLanguage() {
  choose(preferred(preference.get("language"), navigator.languages), { keep: false });
  const languages = find("#language");
  languages.append(...Object.entries(LANGUAGES).map(([name, { name: own, tag }]) => h(
    "option", { value: name, lang: tag }, own,
  )));
  languages.value = language();
  languages.addEventListener("change", () => choose(languages.value, { keep: true }));
}

export class Appearance {
  #root = document.documentElement;
  #changed;
  #isCode = false;

  /** @param {() => void} changed runs after every change of colours, fonts or sizes */
  constructor(changed) {
    this.#changed = changed;
    for (const [name, choices] of Object.entries(CHOICES)) {
      const kept = preference.get(name);
      this.#root.dataset[name] = choices.includes(kept) ? kept : choices[0];
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
    this.#setFace();
  }

  /** Build the choices in the current language. */
  build() {
    find("#looks").replaceChildren(...Object.keys(CHOICES).map((name) => h("fieldset", { class: "look" },
      h("legend", {}, t(`look.${name}`)),
      h("div", { class: "segments" }, ...(SHOWN[name] ?? CHOICES[name]).map((value) => h("label", {},
        h("input", {
          type: "radio", name: `look-${name}`, value, checked: this.#root.dataset[name] === value,
          onchange: () => this.#set(name, value),
        }),
        h("span", {}, t(`look.${name}.${value}`))))))));
  }

  /** Choose the font for this text, if the reader leaves it to the page. */
  follow(text) {
    const code = isCode(text);
    if (code === this.#isCode) return;
    this.#isCode = code;
    this.#setFace();
    this.#changed();
  }

  #set(name, value) {
    preference.set(name, value);
    this.#root.dataset[name] = value;
    this.#setFace();
    this.#changed();
  }

  #setFace() {
    const { font } = this.#root.dataset;
    this.#root.dataset.face = font === "auto" ? (this.#isCode ? "mono" : "serif") : font;
  }
}
