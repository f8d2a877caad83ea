/** The playground: makes the parts and connects them. */

import { Api, ApiError, Unreachable } from "./api.js";
import { Appearance, settleLanguage } from "./appearance.js";
import { Branches } from "./branches.js";
import { Choices } from "./choices.js";
import { Commands } from "./commands.js";
import { Comparison } from "./comparison.js";
import { Controls } from "./controls.js";
import { dressDialogs } from "./dialogs.js";
import { Dock } from "./dock.js";
import { Documents } from "./documents.js";
import { Editor } from "./editor.js";
import { Exporting } from "./exporting.js";
import { find, settled } from "./dom.js";
import { learn, number, onLanguage, t } from "./i18n.js";
import { KeyDialog } from "./keydialog.js";
import { Keeper } from "./keeper.js";
import { LANGUAGES } from "./lang/index.js";
import { BadLink, fromFragment } from "./link.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { Notice } from "./notice.js";
import { Panel } from "./panel.js";
import { Reference } from "./reference.js";
import { defaults } from "./request.js";
import { remembering, Sent } from "./sent.js";
import { Session } from "./session.js";
import { Share } from "./share.js";
import { Stage } from "./stage.js";
import { Start } from "./start.js";
import { key } from "./storage.js";
import { bodyOf, rendered } from "./template.js";
import { TokenView } from "./tokenview.js";
import { TreeMap } from "./treemap.js";

const LOOK_AGAIN_MS = 2000;
const SETTLE_MS = 150;

learn(LANGUAGES);
settleLanguage();
dressDialogs();

const settings = defaults();
const notice = new Notice();
const models = new Models(find("#model"), settings);
const keys = new KeyDialog(() => void loadModels());
const api = new Api(key, (refused) => keys.ask(refused));

async function loadModels() {
  const list = await attempt(() => api.json("/v1/models"), () => void loadModels());
  if (list === null) return;
  models.take(list);
  if (models.isEmpty) notice.refuse(t("problem.noModel"));
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

/** As `attempt`, for what the reader did not ask for: that it is refused for now is no news. */
function aside(ask) {
  return attempt(async () => {
    try {
      return await ask();
    } catch (error) {
      if (error instanceof ApiError && (error.status === 429 || error.status >= 500)) return null;
      throw error;
    }
  });
}

function fail(error, retry = null) {
  if (error instanceof Unreachable) waitForServer();
  if (error instanceof ApiError && controls.fail(fieldOf(error), error.message)) panel.open("settings");
  notice.show(error, error instanceof ApiError && error.retryAfter_s === null ? null : retry);
}

/** Returns the field of an error. A full context names no field; fewer `max_tokens` can fix it. */
function fieldOf({ param, code }) {
  if (param?.startsWith("messages")) return "chat_template";
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

async function tokenize(prompt) {
  const found = await api.json("/tokenize", {
    model: settings.model, prompt, add_special_tokens: false, return_token_strs: true,
  });
  return { ...found, prompt };
}

/** Whether the page may ask what the reader did not: each such request counts in the limits of a key. */
const hasSpare = () => settings.model !== "" && !looking && !api.isScarce;

const ask = remembering((model, messages) => aside(() => rendered(api, model, messages)));
const render = (messages) => ask(settings.model, messages);
const sent = new Sent(() => {
  if (!hasSpare() || session.busy) return undefined;
  if (models.template !== "server") return session.request.messages;
  // Under this name the server wraps the text as one message.
  return [{ role: "user", content: session.text.slice(0, session.place.start), at: 0 }];
}, render);
const session = new Session({
  api, settings: () => settings,
  page: () => ({ selection: editor.selection, fills: models.fills, wraps: models.wraps }),
});
const keeper = new Keeper(session, settings);
const controls = new Controls(find("#controls"), settings, async (text) => {
  const found = await attempt(() => tokenize(text));
  return found && found.tokens.map((id, i) => ({ id, text: found.token_strs[i] }));
}, sent.box);
const panel = new Panel(find("#panel"), find("#panel-toggle"));
const editor = new Editor(session, notice);
const stage = new Stage();
new Choices(find("#choices"), session);
const branches = new Branches(session);
const comparison = new Comparison(session, stage);
const map = new TreeMap(session, stage);
const tokenView = new TokenView(find("#token-view"), async (text) => {
  if (!hasSpare()) return null;
  const { messages } = session;
  const sent = messages === null ? { prompt: text } : await render(messages);
  return sent && aside(() => tokenize(sent.prompt));
});
const dock = new Dock({ session, settings, models, found: () => tokenView.found });
const start = new Start(session, models);
const documents = new Documents(keeper, session);
const exporting = new Exporting(session, () => keeper.title || t("document.untitled"));
const live = new Live(find("#live"), async () => {
  try {
    return await api.text("/metrics");
  } catch (error) {
    if (error instanceof Unreachable) waitForServer();
    else if (!(error instanceof ApiError)) throw error;
    return null;
  }
});
const appearance = new Appearance(() => {
  editor.redraw();
  map.redraw();
});
const share = new Share(() => {
  const { text, gap } = session;
  const end = gap?.end ?? text.length;
  return { keyed: key.get() !== null, settings, text: text.slice(0, gap?.start ?? end), suffix: text.slice(end) };
});
new Reference(stage, () => attempt(() => api.json("/openapi.json")));
const body = () => attempt(() => bodyOf(api, session.request));
const commands = new Commands({ session, editor, controls, panel, stage, notice, share, branches, map, models, body });

const followText = settled(SETTLE_MS, () => {
  appearance.follow(session.text);
  documents.follow();
});
document.addEventListener("selectionchange", () => sent.follow());

session.addEventListener("problem", ({ detail }) => fail(detail, () => commands.run("continue")));
session.addEventListener("running", () => {
  document.body.dataset.running = session.running?.kind ?? "";
  if (session.running === null) {
    notice.say(t("said.done"));
    tokenView.follow(session.text);
    keeper.changed();
  } else notice.say(t(`said.${session.running.kind}`));
});
for (const type of ["text", "gap", "tree", "marks"]) {
  session.addEventListener(type, () => {
    followText();
    start.follow();
    sent.follow();
    if (session.running !== null) return;
    tokenView.follow(session.text);
    keeper.changed();
  });
}
for (const type of ["choices", "running"]) session.addEventListener(type, () => start.follow());
session.addEventListener("settings", () => controls.refresh());
session.addEventListener("ended", () => notice.tell(t(models.wraps ? "news.endedChat" : "news.ended")));
tokenView.addEventListener("counted", () => dock.counted());
controls.addEventListener("change", () => {
  if (models.wraps !== wrapped) {
    // A chat has no place for text after a gap.
    if (session.gap !== null) session.turnGap();
    followModel();
  }
  dock.draw();
  keeper.changed();
});
models.addEventListener("chosen", () => {
  followModel();
  keeper.changed();
});

let wrapped = false;

/** Show what the chosen model can, and what is sent to it. */
function followModel() {
  wrapped = models.wraps;
  controls.follow(models);
  start.build();
  dock.draw();
  tokenView.follow(session.text);
  sent.follow();
}

panel.addEventListener("shown", () => {
  live.open = panel.shown === "server";
  tokenView.draw();
  sent.follow();
});

branches.addEventListener("compare", ({ detail }) => comparison.show(detail));
branches.addEventListener("uncompared", () => comparison.hide());
stage.addEventListener("closed", () => branches.unpick());
find("#map-open").addEventListener("click", () => commands.run("map"));
exporting.addEventListener("imported", ({ detail: { tree, at } }) => {
  session.take(tree, at);
  notice.tell(t("news.imported", { count: number(tree.size - 1) }));
});
exporting.addEventListener("refused", ({ detail }) => notice.refuse(detail));

start.addEventListener("chosen", ({ detail: { text, gap, score } }) => {
  session.begin(text, gap);
  commands.run(score ? "score" : "continue");
});
find("#new").addEventListener("click", () => void keeper.create());
keeper.addEventListener("opened", () => {
  notice.clear();
  stage.close();
  controls.refresh();
  models.refresh();
  branches.unpick();
  editor.area.focus();
});
keeper.addEventListener("copied", () => {
  documents.follow();
  notice.tell(t("news.copied"));
});
keeper.addEventListener("failed", ({ detail }) => notice.tell(t("news.notKept", { reason: detail.message })));

document.body.dataset.running = "";
onLanguage(() => {
  controls.build();
  appearance.build();
  start.build();
  branches.draw();
  live.build();
  tokenView.draw();
  editor.redraw();
  map.redraw();
  dock.draw();
  documents.follow();
});

/** Show the document of this tab, then the link in the address if there is one. */
async function arrive() {
  await keeper.arrive();
  await readLink();
  start.follow();
  controls.refresh();
  await loadModels();
  document.body.dataset.ready = "true";
  editor.area.focus();
}

/** A link becomes a new document, so it takes the place of nothing. */
async function readLink() {
  try {
    const carried = await fromFragment(location.hash);
    if (carried === null) return;
    const { text, suffix } = carried;
    await keeper.create(text + suffix, suffix === "" ? null : { start: text.length, end: text.length });
    Object.assign(settings, carried.settings);
    controls.refresh();
    models.refresh();
    // From here on the page can differ from the link.
    history.replaceState(null, "", location.pathname);
  } catch (error) {
    if (!(error instanceof BadLink)) throw error;
    notice.refuse(t("link.bad"));
  }
}

window.addEventListener("hashchange", () => void readLink());
void arrive();
