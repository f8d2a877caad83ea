/** The playground: makes the parts and connects them. */

import { Api, ApiError, Unreachable } from "./api.js";
import { settleLanguage, settleTheme } from "./appearance.js";
import { Branches } from "./branches.js";
import { Choices } from "./choices.js";
import { Controls } from "./controls.js";
import { Editor } from "./editor.js";
import { eachFrame, find, settled } from "./dom.js";
import { number, onLanguage, t } from "./i18n.js";
import { KeyDialog } from "./keydialog.js";
import { BadLink, fromFragment } from "./link.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { Notice } from "./notice.js";
import { Panel } from "./panel.js";
import { TokenView } from "./tokenview.js";
import { defaults, readSettings } from "./request.js";
import { Session } from "./session.js";
import { Share } from "./share.js";
import { key, PageStorage } from "./storage.js";
import { ROOT } from "./tree.js";

const SAVE_AFTER_MS = 700;
const LOOK_AGAIN_MS = 2000;

settleLanguage();

const settings = defaults();
const notice = new Notice();
const models = new Models(find("#model"), settings);
const keys = new KeyDialog(() => void loadModels());
const api = new Api(key, (refused) => keys.ask(refused));

async function loadModels() {
  const list = await attempt(() => api.json("/v1/models"), () => void loadModels());
  if (list !== null) models.take(list);
}

/** Returns what `ask` resolves to, or null after an error that the page shows. */
async function attempt(ask, retry) {
  try {
    return await ask();
  } catch (error) {
    fail(error, retry);
    return null;
  }
}

function fail(error, retry = null) {
  if (error instanceof Unreachable) waitForServer();
  if (error instanceof ApiError && controls.fail(fieldOf(error), error.message)) panel.open("settings");
  notice.show(error, error instanceof ApiError && error.retryAfter_s === null ? null : retry);
}

/** Returns the field of an error. A full context names no field; fewer `max_tokens` can fix it. */
function fieldOf({ param, code }) {
  return code === "context_length_exceeded" && settings.max_tokens !== null ? "max_tokens" : param;
}

let looking = false;

/** Poll until the server is back, then load the models again. */
function waitForServer() {
  if (looking) return;
  looking = true;
  const look = async () => {
    if (!(await api.healthy())) {
      setTimeout(() => void look(), LOOK_AGAIN_MS);
      return;
    }
    looking = false;
    notice.tell(t("news.back"));
    await loadModels();
  };
  setTimeout(() => void look(), LOOK_AGAIN_MS);
}

const tokenize = (text, strings) => attempt(() => api.json("/tokenize", {
  model: settings.model, prompt: text, add_special_tokens: false, return_token_strs: strings,
}));

const session = new Session({ api, settings: () => settings, limits: () => models.limits });
const controls = new Controls(find("#controls"), settings, async (text) => {
  const found = await tokenize(text, true);
  return found && found.tokens.map((id, i) => ({ id, text: found.token_strs[i] }));
});
const panel = new Panel(find("#panel"), find("#panel-toggle"));
const editor = new Editor(session, notice);
new Choices(find("#choices"), session);
const branches = new Branches({
  list: find("#branches"), bar: find("#branch-bar"), comparison: find("#comparison"),
}, session);
const tokenView = new TokenView(find("#token-view"), (text) => (settings.model === "" || looking ? null : tokenize(text, true)));
const live = new Live(find("#live"), async () => {
  try {
    return await api.text("/metrics");
  } catch (error) {
    if (error instanceof Unreachable) waitForServer();
    else if (!(error instanceof ApiError)) throw error;
    return null;
  }
});
const share = new Share(() => ({
  body: session.body, keyed: key.get() !== null, settings, text: session.text, suffix: session.suffix,
}));

let storage = null;
const save = settled(SAVE_AFTER_MS, async () => {
  if (storage === null || session.running !== null) return;
  const page = { at: session.at, text: session.text, suffix: session.suffix, settings: structuredClone(settings) };
  try {
    await storage.save(session.tree, page);
  } catch (error) {
    storage = null;
    notice.tell(t("news.notKept", { reason: error.message }));
  }
});

function showInfill() {
  find("#infill").disabled = !models.fills;
  find("#infill").checked = settings.infill;
  find("#infill-none").hidden = models.fills;
  find("#hint-infill").hidden = !models.fills;
  find("#gap").hidden = !(settings.infill && models.fills);
}

const showCount = eachFrame(() => {
  const { found } = tokenView;
  find("#count").textContent = found === null ? "" : t("count.of", {
    count: number(found.count), context: number(found.max_model_len),
  });
});

document.body.dataset.running = "";
const showRunning = eachFrame(() => {
  const { running } = session;
  find("#continue").hidden = running !== null;
  find("#stop").hidden = running === null;
  find("#score").disabled = running !== null || session.text === "";
  find("#new").disabled = running !== null;
  find("#undo").disabled = running !== null || !session.canUndo;
});

function proceed() {
  notice.clear();
  controls.clearErrors();
  editor.area.focus();
  void session.continue();
}

session.addEventListener("problem", ({ detail }) => fail(detail, proceed));
session.addEventListener("running", () => {
  document.body.dataset.running = session.running?.kind ?? "";
  showRunning();
  if (session.running !== null) notice.say(t(`said.${session.running.kind}`));
  else {
    notice.say(t("said.done"));
    tokenView.follow(session.text);
    save();
  }
});
for (const type of ["text", "suffix", "tree", "marks"]) {
  session.addEventListener(type, () => {
    if (session.running !== null) return;
    showRunning();
    tokenView.follow(session.text);
    save();
  });
}
tokenView.addEventListener("counted", showCount);
controls.addEventListener("change", save);
branches.addEventListener("imported", ({ detail: { tree, at } }) => {
  session.take(tree, at);
  notice.tell(t("news.imported", { count: number(tree.size - 1) }));
});
branches.addEventListener("refused", ({ detail }) => {
  notice.refuse(detail);
});

find("#continue").addEventListener("click", proceed);
find("#stop").addEventListener("click", () => session.stop());
find("#score").addEventListener("click", () => {
  notice.clear();
  editor.area.focus();
  void session.score();
});
find("#undo").addEventListener("click", () => session.undo());
find("#new").addEventListener("click", () => {
  session.begin("");
  editor.area.focus();
});
find("#share-open").addEventListener("click", () => share.open());
find("#key-open").addEventListener("click", () => void keys.ask());
models.addEventListener("chosen", () => {
  controls.limit(models.limits);
  showInfill();
  tokenView.follow(session.text);
  save();
});
find("#infill").addEventListener("change", (event) => {
  settings.infill = event.target.checked;
  showInfill();
  save();
});
panel.addEventListener("shown", () => {
  live.open = panel.shown === "server";
  tokenView.draw();
});

document.addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  if (document.querySelector("dialog[open]") !== null) return;
  if (command && event.key === "Enter") {
    event.preventDefault();
    proceed();
  } else if (event.key === "Escape") {
    if (session.running !== null) session.stop();
    else if (session.choices.length > 0) session.choose(-1);
    else panel.closeDrawer();
  } else if (command && /^[zy]$/i.test(event.key) && isEditable(event.target)) {
    event.preventDefault();
    if (event.key.toLowerCase() === "y" || event.shiftKey) session.redo();
    else session.undo();
  }
});

function isEditable(target) {
  return target === document.body || target.id === "text" || target.id === "suffix";
}

// A text area's own undo does not know what the model wrote.
for (const area of [editor.area, find("#suffix")]) {
  area.addEventListener("beforeinput", (event) => {
    if (event.inputType !== "historyUndo" && event.inputType !== "historyRedo") return;
    event.preventDefault();
    if (event.inputType === "historyUndo") session.undo();
    else session.redo();
  });
}

onLanguage(() => {
  controls.build();
  branches.draw();
  live.build();
  tokenView.draw();
  editor.redraw();
  showCount();
});

settleTheme(() => editor.redraw());

/** Restore the last visit, then apply the link in the address if there is one. */
async function arrive() {
  try {
    storage = await PageStorage.open();
    const { nodes, page } = await storage.load();
    if (nodes.length > 0) {
      Object.assign(settings, readSettings(page?.settings));
      session.resume(nodes, page?.at ?? ROOT, page?.text, page?.suffix ?? "");
    }
  } catch (error) {
    // Private windows may refuse storage. The page works without it.
    notice.tell(t("news.notKept", { reason: error.message }));
  }
  await readLink();
  controls.refresh();
  await loadModels();
  document.body.dataset.ready = "true";
  editor.area.focus();
}

async function readLink() {
  try {
    const carried = await fromFragment(location.hash);
    if (carried === null) return;
    Object.assign(settings, carried.settings);
    session.begin(carried.text, carried.suffix);
    // From here on the page can differ from the link.
    history.replaceState(null, "", location.pathname);
  } catch (error) {
    if (!(error instanceof BadLink)) throw error;
    notice.refuse(t("link.bad"));
  }
}

window.addEventListener("hashchange", () => {
  void readLink().then(() => {
    controls.refresh();
    models.refresh();
  });
});
void arrive();
