/** The API reference by itself: /docs in a browser, on a server that wants a key. */

import { Api, ApiError, Unreachable } from "./api.js";
import { Appearance } from "./appearance.js";
import { dressDialogs } from "./dialogs.js";
import { find } from "./dom.js";
import { choose, learn, preferred } from "./i18n.js";
import { KeyDialog } from "./keydialog.js";
import { LANGUAGES } from "./lang/index.js";
import { Notice } from "./notice.js";
import { drawReference } from "./reference.js";
import { key, preference } from "./storage.js";

learn(LANGUAGES);
choose(preferred(preference.get("language"), navigator.languages), { keep: false });
dressDialogs();
new Appearance(() => undefined);
const notice = new Notice();
const keys = new KeyDialog(() => void load());
const api = new Api(key, (refused) => keys.ask(refused));

async function load() {
  try {
    drawReference(find("#reference"), await api.json("/openapi.json"));
    notice.clear();
  } catch (error) {
    if (!(error instanceof ApiError) && !(error instanceof Unreachable)) throw error;
    notice.show(error, () => void load());
  }
}

void load();
