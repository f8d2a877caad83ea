/** Language and colours of the page, chosen in the bar. */

import { find } from "./dom.js";
import { choose, language, preferred } from "./i18n.js";
import { preference } from "./storage.js";

/** Set the language before anything is built: the reader's choice, else the browser's. */
export function settleLanguage() {
  choose(preferred(preference.get("language"), navigator.languages), { keep: false });
  const languages = find("#language");
  languages.value = language();
  languages.addEventListener("change", () => choose(languages.value, { keep: true }));
}

/** Set the colours. `changed` runs now and after every change. */
export function settleTheme(changed) {
  const theme = find("#theme");
  theme.value = preference.get("theme") ?? "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme.value;
    changed();
  };
  theme.addEventListener("change", () => {
    preference.set("theme", theme.value);
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  apply();
}
