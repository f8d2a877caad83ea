/** The tree of continuations as a list: move, search, name, bookmark, pick, delete. */

import { eachFrame, find, h } from "./dom.js";
import { beginning, ending } from "./excerpt.js";
import { percent, t } from "./i18n.js";
import { search } from "./search.js";
import { figures } from "./tokens.js";
import { childrenOf, pathOf, ROOT } from "./tree.js";

const SHOWN_CHARACTERS = 90;
const MOST_HITS = 200;

/** Dispatches `compare` with two ids, and `uncompared`. */
export class Branches extends EventTarget {
  #list = find("#branches");
  #query = find("#branch-search");
  #session;
  #focus = ROOT;
  #picked = [];
  #renaming = false;
  #onlyMarked = false;
  #means = new WeakMap();

  constructor(session) {
    super();
    this.#session = session;
    const draw = eachFrame(() => this.draw());
    session.addEventListener("tree", draw);
    this.#query.addEventListener("input", draw);
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("focusin", ({ target }) => {
      if (target.getAttribute("role") === "treeitem") this.#focus = target.dataset.id;
    });
    const here = (run) => () => run(this.#session.at);
    find("#branch-rename").addEventListener("click", here((id) => this.#rename(id)));
    find("#branch-mark").addEventListener("click", here((id) => this.#mark(id)));
    find("#branch-pick").addEventListener("click", here((id) => this.#pick(id)));
    find("#branch-prune").addEventListener("click", here((id) => this.#prune(id)));
    find("#branch-marked").addEventListener("click", () => {
      this.#onlyMarked = !this.#onlyMarked;
      this.draw();
    });
  }

  draw() {
    // A drawing would remove the input for the name; the end of `#rename` draws all rows.
    if (this.#renaming) return;
    const { tree, at } = this.#session;
    this.#picked = this.#picked.filter((id) => tree.has(id));
    if (!tree.has(this.#focus)) this.#focus = at;
    const held = this.#list.contains(document.activeElement);
    const query = this.#query.value.trim();
    const rows = query !== "" ? this.#hits(query) : this.#onlyMarked ? this.#bookmarks() : this.#tree();
    this.#list.replaceChildren(...rows);
    find("#branches-none").hidden = rows.length > 0;
    if (rows.length > 0 && this.#rowOf(this.#focus) === undefined) rows[0].tabIndex = 0;
    if (held) this.#rowOf(this.#focus)?.focus();
    this.#drawBar();
  }

  /** Forget which branches were picked for comparison. */
  unpick() {
    this.#picked = [];
    this.draw();
  }

  /** Bookmark the branch of the text, or remove its bookmark. */
  markHere() {
    this.#session.keep();
    this.#mark(this.#session.at);
  }

  #tree() {
    const { tree, at } = this.#session;
    const onPath = new Set(pathOf(tree, at).map((node) => node.id));
    const rows = [];
    // No recursion, because trees are deep.
    const stack = [[tree.get(ROOT), 0]];
    while (stack.length > 0) {
      const [node, level] = stack.pop();
      rows.push(this.#row(node, { level, current: onPath.has(node.id), words: [this.#wordsOf(node)] }));
      for (const child of [...childrenOf(tree, node.id)].reverse()) stack.push([child, level + 1]);
    }
    return rows;
  }

  #hits(query) {
    return search(this.#session.tree, query).slice(0, MOST_HITS).map(({ id, end, before, found, after }) => {
      const words = found === "" ? [after] : [ending(before, 24), h("mark", {}, found), after];
      return this.#row(this.#session.tree.get(id), { words, caret: found === "" ? null : end });
    });
  }

  #bookmarks() {
    const marked = [...this.#session.tree.values()].filter((node) => node.mark);
    return marked.map((node) => this.#row(node, { words: [this.#wordsOf(node)] }));
  }

  #wordsOf({ id, text, tail }) {
    const own = beginning(text.slice(0, text.length - tail).trim(), SHOWN_CHARACTERS).replace(/\s+/g, " ");
    return id === ROOT ? t("branches.root") : own || t("branches.blank");
  }

  #row(node, { words, level = 0, current = false, caret = null }) {
    const picked = this.#picked.includes(node.id);
    const mean = this.#meanOf(node);
    const row = h("li", {
      role: "treeitem", class: "branch", "data-id": node.id, "data-by": node.by,
      "aria-level": level + 1, "aria-selected": node.id === this.#session.at,
      "aria-current": current ? "true" : null,
      tabindex: node.id === this.#focus ? 0 : -1,
      onclick: () => {
        this.#focus = node.id;
        this.#session.go(node.id, caret);
      },
    },
    h("span", { class: "branch-dot", "aria-hidden": "true" }),
    h("span", { class: "branch-words" },
      node.name === "" ? null : h("strong", {}, h("bdi", {}, node.name)), h("bdi", {}, ...words)),
    h("span", { class: "branch-note" },
      node.mark ? h("span", { role: "img", "aria-label": t("branches.marked") }, "★") : null,
      picked ? t("branches.picked") : mean === null ? "" : percent(Math.exp(mean))));
    row.style.setProperty("--level", level);
    return row;
  }

  #meanOf(node) {
    if (!this.#means.has(node)) this.#means.set(node, figures(node.groups, node.from).mean);
    return this.#means.get(node);
  }

  #rowOf(id) {
    return [...this.#list.children].find((row) => row.dataset.id === id);
  }

  #key(event) {
    if (event.target.getAttribute("role") !== "treeitem" || event.altKey || event.ctrlKey) return;
    const rows = [...this.#list.children];
    const here = rows.indexOf(event.target);
    const to = {
      ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1,
    }[event.key];
    const run = {
      Enter: () => event.target.click(), " ": () => event.target.click(),
      F2: () => this.#rename(), Delete: () => this.#prune(), c: () => this.#pick(), b: () => this.#mark(),
      ArrowLeft: () => this.#moveTo(this.#session.tree.get(this.#focus).parent),
      ArrowRight: () => this.#moveTo(childrenOf(this.#session.tree, this.#focus)[0]?.id ?? null),
    }[event.key];
    if (to !== undefined) this.#moveTo(rows[Math.max(0, Math.min(rows.length - 1, to))].dataset.id);
    else if (run !== undefined) run();
    else return;
    event.preventDefault();
  }

  #moveTo(id) {
    if (id === null || this.#rowOf(id) === undefined) return;
    this.#focus = id;
    for (const row of this.#list.children) row.tabIndex = row.dataset.id === id ? 0 : -1;
    this.#rowOf(id).focus();
  }

  #drawBar() {
    const { at, tree } = this.#session;
    for (const name of ["rename", "mark", "prune"]) find(`#branch-${name}`).disabled = at === ROOT;
    find("#branch-mark").setAttribute("aria-pressed", String(tree.get(at).mark));
    find("#branch-pick").setAttribute("aria-pressed", String(this.#picked.includes(at)));
    find("#branch-marked").setAttribute("aria-pressed", String(this.#onlyMarked));
  }

  #rename(id = this.#focus) {
    const row = this.#rowOf(id);
    if (id === ROOT || row === undefined) return;
    const before = this.#session.tree.get(id).name;
    const input = h("input", { type: "text", class: "rename", maxlength: 80, value: before, "aria-label": t("branches.name") });
    this.#renaming = true;
    const end = (keep) => {
      if (!this.#renaming) return;
      this.#renaming = false;
      input.remove();
      this.#focus = id;
      if (keep) this.#session.rename(id, input.value);
      this.draw();
      this.#rowOf(id)?.focus();
    };
    input.addEventListener("click", (event) => event.stopPropagation());
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") end(false);
    });
    input.addEventListener("blur", () => end(true));
    row.querySelector(".branch-words").prepend(input);
    input.select();
  }

  #mark(id = this.#focus) {
    if (id !== ROOT) this.#session.bookmark(id);
  }

  #prune(id = this.#focus) {
    if (id === ROOT || this.#session.running !== null) return;
    this.#focus = this.#session.tree.get(id).parent;
    this.#session.prune(id);
  }

  /** Pick a branch for comparison. The second one starts it; a third replaces the first. */
  #pick(id = this.#focus) {
    if (this.#picked.includes(id)) this.#picked = this.#picked.filter((other) => other !== id);
    else this.#picked = [...this.#picked, id].slice(-2);
    this.draw();
    if (this.#picked.length === 2) this.dispatchEvent(new CustomEvent("compare", { detail: this.#picked }));
    else this.dispatchEvent(new Event("uncompared"));
  }
}
