/**
 * What the browser stores: branches and page in IndexedDB, preferences in localStorage, the key in
 * sessionStorage. Stored names never change, so that branches of earlier releases are found.
 */

const NAME = "afterword";
const KEY = "afterword.key";

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Branches and page. Nodes are immutable, so a save writes only new, changed and removed ones. */
export class PageStorage {
  #base;
  // The stored row of each node: the node, and its place in the order of creation.
  #saved = new Map();
  #made = 0;

  constructor(base) {
    this.#base = base;
  }

  static async open() {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("nodes", { keyPath: "id" });
      request.result.createObjectStore("page");
    };
    return new PageStorage(await done(request));
  }

  /** Returns the stored nodes in order of creation, and the page or undefined. */
  async load() {
    const stores = this.#base.transaction(["nodes", "page"]);
    const [rows, page] = await Promise.all([
      done(stores.objectStore("nodes").getAll()),
      done(stores.objectStore("page").get("page")),
    ]);
    rows.sort((a, b) => a.order - b.order);
    this.#saved = new Map(rows.map((row) => [row.id, row]));
    this.#made = rows.at(-1)?.order ?? 0;
    return { nodes: rows.map((row) => row.node), page };
  }

  async save(tree, page) {
    const change = this.#base.transaction(["nodes", "page"], "readwrite");
    const nodes = change.objectStore("nodes");
    const saved = new Map();
    for (const [id, node] of tree) {
      let row = this.#saved.get(id);
      if (row?.node !== node) {
        this.#made += 1;
        row = { id, order: row?.order ?? this.#made, node };
        nodes.put(row);
      }
      saved.set(id, row);
    }
    for (const id of this.#saved.keys()) if (!tree.has(id)) nodes.delete(id);
    change.objectStore("page").put(page, "page");
    await new Promise((resolve, reject) => {
      change.oncomplete = resolve;
      change.onabort = () => reject(change.error);
    });
    this.#saved = saved;
  }
}

/** The API key, kept until this tab closes. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set(value) {
    if (value === "") sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  },
};

/** The reader's language and colours. */
export const preference = {
  get: (name) => localStorage.getItem(`afterword.${name}`),
  set: (name, value) => localStorage.setItem(`afterword.${name}`, value),
};
