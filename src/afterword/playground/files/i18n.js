/** The page's words in the reader's language. Each file in `lang/` is a language. */

import { preference } from "./storage.js";
import { tooltip } from "./keys.js";

const BASE = "en";

/** @type {Record<string, {name: string, tag: string, words: Record<string, string>}>} */
let known = {};
let current = BASE;
const listeners = [];

/** Set the languages: the modules of `lang/` by their names. */
export function learn(languages) {
  known = languages;
}

/** Returns the chosen language, else the first known one of the browser's, else English. */
export function preferred(chosen, offered, languages = known) {
  if (chosen !== null && Object.hasOwn(languages, chosen)) return chosen;
  for (const tag of offered) {
    const short = tag.toLowerCase().split("-")[0];
    if (Object.hasOwn(languages, short)) return short;
  }
  return BASE;
}

export function language() {
  return current;
}

/** Returns the words of a key, with each `{name}` replaced by its value. */
export function t(key, values = {}) {
  // A language that is new may lack words.
  const words = known[current].words[key] ?? known[BASE].words[key];
  if (words === undefined) throw new Error(`no words for ${key}`);
  return words.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** Run now and whenever the language changes. */
export function onLanguage(run) {
  listeners.push(run);
  run();
}

export function choose(name, { keep }) {
  current = name;
  if (keep) preference.set("language", name);
  document.documentElement.lang = known[name].tag;
  translate(document);
  for (const run of listeners) run();
}

/** Set the words of all elements that name a key. `data-key` names the command of a button. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    element.title = tooltip(t(element.dataset.tLabel), element.dataset.key);
  }
  for (const element of root.querySelectorAll("[data-t-title]")) {
    element.title = tooltip(t(element.dataset.tTitle), element.dataset.key);
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) {
    element.placeholder = t(element.dataset.tPlaceholder);
  }
}

const digits = {};

/** Format a number in the current language. */
export function number(value, places = 0) {
  const name = `${current}${places}`;
  digits[name] ??= new Intl.NumberFormat(known[current].tag, {
    minimumFractionDigits: places, maximumFractionDigits: places,
  });
  return digits[name].format(value).replace("-", "−");
}

/** Format a moment in the current language. */
export function moment(at_ms) {
  return new Intl.DateTimeFormat(known[current].tag, { dateStyle: "medium", timeStyle: "short" }).format(at_ms);
}

/** Format a probability in percent, with more decimals if it is small. */
export function percent(probability) {
  const value = probability * 100;
  if (value > 0 && value < 0.01) return `<${number(0.01, 2)} %`;
  return `${number(value, value < 1 ? 2 : value < 99.95 ? 1 : 0)} %`;
}
