/**
 * What the browser stores: documents with their branches in IndexedDB, drafts and preferences in
 * localStorage, the key and the open document of a tab in sessionStorage. Stored names never change,
 * so that branches of earlier releases are found.
 */

import { freshId } from "./dom.js";

const NAME = "afterword";
const KEY = "afterword.key";
const OPEN = "afterword.document";
const DRAFT = "afterword.draft.";
/** The document that an earlier release kept, when there was only one. */
const FIRST = "first";

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function committed(change) {
  return new Promise((resolve, reject) => {
    change.oncomplete = resolve;
    change.onabort = () => reject(change.error);
  });
}

/** Make the stores. Branches of release 0.1 move into a document. */
function upgrade({ target: { result: base, transaction } }) {
  base.createObjectStore("documents", { keyPath: "id" });
  const branches = base.createObjectStore("branches", { keyPath: ["document", "id"] });
  if (!base.objectStoreNames.contains("nodes")) return;
  transaction.objectStore("nodes").openCursor().onsuccess = ({ target: { result: cursor } }) => {
    if (cursor === null) {
      base.deleteObjectStore("nodes");
      return;
    }
    const { id, order, node } = cursor.value;
    branches.put({ document: FIRST, id, order, node: { lead: 0, tail: 0, mark: false, ...node } });
    cursor.continue();
  };
  transaction.objectStore("page").get("page").onsuccess = ({ target: { result: page } }) => {
    const { at, text, suffix = "", settings } = page ?? {};
    const whole = { at, settings, text: text === undefined ? undefined : text + suffix };
    const gap = suffix === "" ? null : { start: text.length, end: text.length };
    transaction.objectStore("documents").put(rowOf(FIRST, "", { ...whole, gap }));
    base.deleteObjectStore("page");
  };
}

/** A row of `documents`. Each save has another `stamp`, which tells who wrote it last. */
function rowOf(id, name, page, stamp = freshId()) {
  return { id, name, page, stamp, edited: Date.now() };
}

const ofDocument = (id) => IDBKeyRange.bound([id], [id, []]);

/** What is stored of a document: its rows of nodes, and who wrote it last. */
class Stored {
  /** How many nodes it ever had. */
  made = 0;

  /** The stamp of a save that is under way. */
  next = null;

  constructor(id, rows = [], stamp = null) {
    this.id = id;
    this.rows = new Map(rows.map((row) => [row.id, row]));
    this.made = rows.at(-1)?.order ?? 0;
    this.stamp = stamp;
  }

  /** Begin again: everything is written by the next save. */
  forget(id) {
    this.id = id;
    this.rows = new Map();
    this.made = 0;
    this.stamp = null;
  }
}

/**
 * Documents, one of them open. Nodes are immutable, so a save writes only new, changed and removed
 * ones. If another tab saved the open document meanwhile, a save makes a copy instead.
 */
export class PageStorage {
  #base;
  #open = new Stored(freshId());
  #queue = Promise.resolve();
  // The saves that are not through yet, by their documents.
  #pending = new Map();
  #visit = freshId();

  constructor(base) {
    this.#base = base;
  }

  static async open() {
    const request = indexedDB.open(NAME, 2);
    request.onupgradeneeded = upgrade;
    const blocked = new Promise((_, reject) => {
      request.onblocked = () => reject(new Error("another tab shows an older page"));
    });
    const base = await Promise.race([done(request), blocked]);
    base.onversionchange = () => base.close();
    return new PageStorage(base);
  }

  /** The id of the open document. */
  get id() {
    return this.#open.id;
  }

  /** Whether the open document was saved before. */
  get isStored() {
    return this.#open.stamp !== null;
  }

  /** Returns all documents, the one edited last first. */
  async list() {
    await this.#queue;
    const rows = await done(this.#base.transaction("documents").objectStore("documents").getAll());
    return rows.sort((a, b) => b.edited - a.edited);
  }

  /**
   * Read a document. Returns its nodes in order of creation, its page and name, and `open`, which
   * makes it the open one; or null.
   */
  async load(id) {
    await this.#queue;
    const stores = this.#base.transaction(["documents", "branches"]);
    const [row, rows] = await Promise.all([
      done(stores.objectStore("documents").get(id)),
      done(stores.objectStore("branches").getAll(ofDocument(id))),
    ]);
    if (row === undefined) return null;
    rows.sort((a, b) => a.order - b.order);
    const open = () => this.#begin(new Stored(id, rows, row.stamp));
    return { nodes: rows.map(({ node }) => node), page: row.page, name: row.name, stamp: row.stamp, open };
  }

  /** Open a new document. It is stored by its first save. */
  create() {
    this.#begin(new Stored(freshId()));
  }

  #begin(document) {
    this.#open = document;
    openDocument.set(document.id);
  }

  /**
   * Save the open document. Saves run one after another, each of the document that was open then.
   * @returns {Promise<boolean>} false if another tab had changed it, so that this is a copy
   */
  save(tree, page, name) {
    const document = this.#open;
    const state = { tree, page, name };
    document.next ??= freshId();
    this.#pending.set(document, state);
    const saving = this.#queue.then(() => this.#save(document, state)).finally(() => {
      if (this.#pending.get(document) === state) this.#pending.delete(document);
    });
    this.#queue = saving.catch(() => undefined);
    return saving;
  }

  async #save(document, { tree, page, name }) {
    const change = this.#base.transaction(["documents", "branches"], "readwrite");
    const [documents, branches] = ["documents", "branches"].map((store) => change.objectStore(store));
    const row = await done(documents.get(document.id));
    const stolen = row !== undefined && row.stamp !== document.stamp;
    // A document that another tab changed or removed is written whole.
    if (row?.stamp !== document.stamp) document.forget(stolen ? freshId() : document.id);
    if (document === this.#open) openDocument.set(document.id);
    document.next ??= freshId();
    const saved = new Map();
    for (const [id, node] of tree) {
      let kept = document.rows.get(id);
      if (kept?.node !== node) {
        document.made += 1;
        kept = { document: document.id, id, order: kept?.order ?? document.made, node };
        branches.put(kept);
      }
      saved.set(id, kept);
    }
    for (const id of document.rows.keys()) if (!tree.has(id)) branches.delete([document.id, id]);
    documents.put(rowOf(document.id, name, page, document.next));
    await committed(change);
    document.rows = saved;
    [document.stamp, document.next] = [document.next, null];
    return !stolen;
  }

  async remove(id) {
    await this.#queue;
    const change = this.#base.transaction(["documents", "branches"], "readwrite");
    change.objectStore("documents").delete(id);
    change.objectStore("branches").delete(ofDocument(id));
    await committed(change);
  }

  /**
   * Keep what is not saved yet, at once: the page is about to go. `state` is what the open document
   * is now, or null if all of it was given to `save`.
   * @param {{tree: import("./tree.js").Tree, page: object, name: string}|null} state
   */
  draft(state) {
    const states = new Map(this.#pending);
    if (state !== null) states.set(this.#open, state);
    for (const [{ id, rows, stamp, next }, { tree, page, name }] of states) {
      const nodes = [...tree.values()].filter((node) => rows.get(node.id)?.node !== node);
      const draft = { id, stamps: [stamp, next], nodes, page, name };
      localStorage.setItem(`${DRAFT}${this.#visit}.${id}`, JSON.stringify(draft));
    }
  }

  dropDrafts() {
    for (const name of Object.keys(localStorage)) {
      if (name.startsWith(DRAFT + this.#visit)) localStorage.removeItem(name);
    }
  }

  /** Save the drafts of pages that went. A draft of a document that changed since is a copy. */
  async recover() {
    const mine = openDocument.get();
    for (const name of Object.keys(localStorage).filter((each) => each.startsWith(DRAFT))) {
      const { id, stamps, nodes, page, name: title } = JSON.parse(localStorage.getItem(name));
      const stored = await this.load(id);
      if (stored === null) this.#begin(new Stored(id));
      else if (stamps.includes(stored.stamp)) stored.open();
      else this.create();
      const tree = new Map([...(stored?.nodes ?? []), ...nodes].map((node) => [node.id, node]));
      await this.save(tree, page, title);
      localStorage.removeItem(name);
    }
    openDocument.set(mine);
  }
}

/** The document that this tab shows, kept until the tab closes. */
export const openDocument = {
  get: () => sessionStorage.getItem(OPEN),
  set(id) {
    if (id === null) sessionStorage.removeItem(OPEN);
    else sessionStorage.setItem(OPEN, id);
  },
};

/** The API key, kept until this tab closes. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set(value) {
    if (value === "") sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  },
};

/** The reader's language and look. */
export const preference = {
  get: (name) => localStorage.getItem(`afterword.${name}`),
  set: (name, value) => localStorage.setItem(`afterword.${name}`, value),
};
