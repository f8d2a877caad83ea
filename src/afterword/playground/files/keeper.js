/** Keeps the open document: loads it, saves it soon after every change, and at the last moment. */

import { beginning } from "./excerpt.js";
import { readSettings } from "./request.js";
import { openDocument, PageStorage } from "./storage.js";
import { ROOT } from "./tree.js";

const SAVE_AFTER_MS = 1000;
const SHOWN_CHARACTERS = 60;

/** Returns the first words of a text, for a document without a name. */
export function firstWords(text) {
  const line = beginning(text, 400).trim().split("\n")[0] ?? "";
  return line.length > SHOWN_CHARACTERS ? `${beginning(line, SHOWN_CHARACTERS).trimEnd()}…` : line;
}

/** Dispatches `opened` after another document is shown, `copied` if a save made a copy, `failed`. */
export class Keeper extends EventTarget {
  name = "";

  #session;
  #settings;
  #store = null;
  #timer = null;
  #dirty = false;
  // The last save failed, and the reader knows it.
  #failing = false;

  /**
   * @param {import("./session.js").Session} session
   * @param {object} settings changed in place
   */
  constructor(session, settings) {
    super();
    this.#session = session;
    this.#settings = settings;
    window.addEventListener("pagehide", () => this.#leave());
    window.addEventListener("pageshow", ({ persisted }) => {
      if (persisted) this.#store?.dropDrafts();
    });
  }

  get title() {
    return this.name || firstWords(this.#session.text);
  }

  /** The id of the open document, or null if this browser stores nothing. */
  get id() {
    return this.#store?.id ?? null;
  }

  /** Open the document of this tab, or the one edited last. */
  async arrive() {
    try {
      this.#store = await PageStorage.open();
      await this.#store.recover();
      const mine = openDocument.get();
      if (mine !== null && (await this.open(mine))) return;
      const [last] = await this.#store.list();
      if (last === undefined || !(await this.open(last.id))) this.#store.create();
    } catch (error) {
      this.#fail(error);
    }
  }

  async list() {
    await this.flush();
    return this.#store === null ? [] : this.#store.list();
  }

  /** Show a stored document. Resolves to false if there is none of this id. */
  async open(id) {
    void this.flush();
    const stored = await this.#store.load(id);
    if (stored === null) return false;
    await this.#rest();
    // The reader may have typed meanwhile.
    void this.flush();
    stored.open();
    const { nodes, page, name } = stored;
    this.name = name;
    Object.assign(this.#settings, readSettings(page?.settings, this.#settings));
    this.#session.resume(nodes, { at: page?.at ?? ROOT, text: page?.text, gap: page?.gap ?? null });
    this.#forget();
    this.dispatchEvent(new Event("opened"));
    return true;
  }

  /** Show a new document with a text. A running request is stopped first. */
  async create(text = "", gap = null) {
    if (this.#session.running !== null) await this.#rest();
    void this.flush();
    this.#store?.create();
    this.name = "";
    this.#session.resume([]);
    this.#forget();
    if (text !== "") this.#session.begin(text, gap);
    this.dispatchEvent(new Event("opened"));
  }

  rename(name) {
    this.name = name.trim();
    this.changed();
  }

  /** Remove a document. If it is the open one, a new one opens. */
  async remove(id) {
    if (id === this.id) {
      this.#forget();
      await this.create();
    }
    await this.#store.remove(id);
  }

  /** Save soon. */
  changed() {
    this.#dirty = true;
    if (this.#store === null) return;
    this.#timer ??= setTimeout(() => void this.flush(), SAVE_AFTER_MS);
  }

  /**
   * Save now what is not saved: the page as it is at the call. While a request runs, the page saves at
   * its end.
   */
  async flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (!this.#dirty || this.#store === null || this.#session.running !== null) return;
    this.#dirty = false;
    if (this.#isBlank && !this.#store.isStored) return;
    try {
      const mine = await this.#store.save(this.#session.tree, this.#page, this.name);
      this.#failing = false;
      if (!mine) this.dispatchEvent(new Event("copied"));
    } catch (error) {
      // The disk may have room again at the next change.
      this.#dirty = true;
      if (!this.#failing) this.#report(error);
      this.#failing = true;
    }
  }

  /** Stop a running request, and wait until the session has kept what came. */
  async #rest() {
    if (this.#session.running === null) return;
    const ended = new Promise((resolve) => {
      this.#session.addEventListener("running", resolve, { once: true });
    });
    this.#session.stop();
    await ended;
    await new Promise((resolve) => {
      setTimeout(resolve);
    });
  }

  get #isBlank() {
    return this.#session.tree.size === 1 && this.#session.text === "" && this.name === "";
  }

  get #page() {
    const { at, text, gap } = this.#session;
    return { at, text, gap, settings: structuredClone(this.#settings) };
  }

  #leave() {
    if (this.#store === null) return;
    const isSaved = !this.#dirty && this.#session.running === null;
    const { tree, at } = this.#session.kept;
    const state = isSaved || (this.#isBlank && !this.#store.isStored) ? null
      : { tree, page: { ...this.#page, at }, name: this.name };
    try {
      this.#store.draft(state);
    } catch (error) {
      // The draft is larger than what localStorage takes; a save may still get through.
      if (error.name !== "QuotaExceededError") throw error;
      void this.flush();
    }
  }

  #forget() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#dirty = false;
  }

  #fail(error) {
    // Private windows may refuse storage. The page works without it.
    this.#store = null;
    this.#report(error);
  }

  #report(error) {
    this.dispatchEvent(new CustomEvent("failed", { detail: error }));
  }
}
