/** The tree of continuations: move, rename, compare, delete, export, import. */

import { eachFrame, h } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { compare } from "./diff.js";
import { figures } from "./tokens.js";
import { BadTree, fromJson, pathOf, ROOT, textOf, toJson } from "./tree.js";

const SHOWN_CHARACTERS = 90;
const MOST_BYTES = 64 * 1024 * 1024;

export class Branches extends EventTarget {
  #parts;
  #session;
  #focus = ROOT;
  #picked = [];
  #renaming = false;

  /** @param {{list: HTMLElement, bar: HTMLElement, comparison: HTMLElement}} parts */
  constructor(parts, session) {
    super();
    this.#parts = parts;
    this.#session = session;
    session.addEventListener("tree", eachFrame(() => this.draw()));
    parts.list.addEventListener("keydown", (event) => this.#key(event));
    parts.list.addEventListener("focusin", ({ target }) => {
      if (target.getAttribute("role") === "treeitem") this.#focus = target.dataset.id;
    });
  }

  draw() {
    // A drawing would remove the input for the name; the end of `#rename` draws all rows.
    if (this.#renaming) return;
    const { tree, at } = this.#session;
    this.#picked = this.#picked.filter((id) => tree.has(id));
    if (!tree.has(this.#focus)) this.#focus = at;
    const held = this.#parts.list.contains(document.activeElement);
    const children = new Map();
    for (const node of tree.values()) {
      if (!children.has(node.parent)) children.set(node.parent, []);
      children.get(node.parent).push(node);
    }
    const onPath = new Set(pathOf(tree, at).map((node) => node.id));
    const rows = [];
    // No recursion, because trees are deep. An only child is not indented, so rows stay wide.
    const stack = [[tree.get(ROOT), 0]];
    while (stack.length > 0) {
      const [node, level] = stack.pop();
      rows.push(this.#row(node, level, onPath));
      const under = children.get(node.id) ?? [];
      const deeper = under.length > 1 || node.id === ROOT ? level + 1 : level;
      for (const child of [...under].reverse()) stack.push([child, deeper]);
    }
    this.#parts.list.replaceChildren(...rows);
    if (held) this.#rowOf(this.#focus)?.focus();
    this.#drawBar();
    this.#drawComparison();
  }

  #row(node, level, onPath) {
    const { at } = this.#session;
    const own = node.text.trim().replace(/\s+/g, " ").slice(0, SHOWN_CHARACTERS);
    const words = node.id === ROOT ? t("branches.root") : own || t("branches.blank");
    const { mean } = figures(node.groups, node.from);
    const picked = this.#picked.includes(node.id);
    const row = h("li", {
      role: "treeitem", class: "branch", "data-id": node.id, "data-by": node.by,
      "aria-level": level + 1, "aria-selected": node.id === at,
      "aria-current": onPath.has(node.id) ? "true" : null,
      tabindex: node.id === this.#focus ? 0 : -1,
      onclick: () => {
        this.#focus = node.id;
        this.#session.go(node.id);
      },
    },
    h("span", { class: "branch-dot", "aria-hidden": "true" }),
    h("span", { class: "branch-words" },
      node.name === "" ? null : h("strong", {}, h("bdi", {}, node.name)),
      h("bdi", {}, words)),
    h("span", { class: "branch-note" }, picked ? t("branches.picked") : mean === null ? "" : percent(Math.exp(mean))));
    row.style.setProperty("--level", level);
    return row;
  }

  #rowOf(id) {
    return [...this.#parts.list.children].find((row) => row.dataset.id === id);
  }

  #key(event) {
    if (event.target.getAttribute("role") !== "treeitem") return;
    const rows = [...this.#parts.list.children];
    const here = rows.indexOf(event.target);
    const to = {
      ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: rows.length - 1,
    }[event.key];
    const run = {
      Enter: () => this.#session.go(this.#focus), " ": () => this.#session.go(this.#focus),
      F2: () => this.#rename(), Delete: () => this.#prune(), c: () => this.#pick(),
      ArrowLeft: () => this.#moveTo(this.#session.tree.get(this.#focus).parent),
    }[event.key];
    if (to !== undefined) this.#moveTo(rows[Math.max(0, Math.min(rows.length - 1, to))].dataset.id);
    else if (run !== undefined) run();
    else return;
    event.preventDefault();
  }

  #moveTo(id) {
    if (id === null) return;
    this.#focus = id;
    for (const row of this.#parts.list.children) row.tabIndex = row.dataset.id === id ? 0 : -1;
    this.#rowOf(id).focus();
    this.#drawBar();
  }

  #drawBar() {
    const { at } = this.#session;
    const root = at === ROOT;
    const action = (key, run, more = {}) => h("button", {
      type: "button", class: "quiet", onclick: run, ...more,
    }, t(key));
    const file = h("input", { type: "file", accept: "application/json,.json", hidden: true, "aria-label": t("branches.import") });
    file.addEventListener("change", () => {
      void this.#import(file.files[0]);
      // The reader can choose the same file again after a repair.
      file.value = "";
    });
    this.#parts.bar.replaceChildren(
      action("branches.rename", () => this.#rename(at), { disabled: root }),
      action("branches.pick", () => this.#pick(at), { "aria-pressed": this.#picked.includes(at) }),
      action("branches.prune", () => this.#prune(at), { disabled: root }),
      action("branches.export", () => this.#export()),
      action("branches.import", () => file.click()), file,
    );
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

  #prune(id = this.#focus) {
    if (id === ROOT || this.#session.running !== null) return;
    this.#focus = this.#session.tree.get(id).parent;
    this.#session.prune(id);
  }

  /** Pick a branch for comparison. A third pick replaces the first. */
  #pick(id = this.#focus) {
    if (this.#picked.includes(id)) this.#picked = this.#picked.filter((other) => other !== id);
    else this.#picked = [...this.#picked, id].slice(-2);
    this.draw();
  }

  #drawComparison() {
    const box = this.#parts.comparison;
    box.hidden = this.#picked.length !== 2;
    if (box.hidden) return;
    const { tree } = this.#session;
    const sides = compare(...this.#picked.map((id) => textOf(tree, id)));
    const marks = ["del", "ins"];
    box.replaceChildren(
      h("header", {}, h("h3", {}, t("compare.title")), h("button", {
        type: "button", class: "quiet",
        onclick: () => {
          this.#picked = [];
          this.draw();
        },
      }, t("compare.close"))),
      ...sides.map((parts, i) => h("section", { class: "side" },
        h("h4", {}, h("bdi", {}, tree.get(this.#picked[i]).name || t("compare.side", { number: i + 1 }))),
        h("p", { dir: "auto" }, ...parts.map(({ same, text }) => (same ? text : h(marks[i], {}, text)))))),
    );
  }

  #export() {
    this.#session.keep();
    const blob = new Blob([toJson(this.#session.tree)], { type: "application/json" });
    const url = URL.createObjectURL(blob);
    h("a", { href: url, download: "branches.json" }).click();
    // The download has started by then.
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  async #import(file) {
    if (file === undefined) return;
    try {
      if (file.size > MOST_BYTES) throw new BadTree("import.tooLong", { most: number(MOST_BYTES) });
      const tree = fromJson(await file.text());
      this.#picked = [];
      const last = [...tree.keys()].at(-1);
      this.dispatchEvent(new CustomEvent("imported", { detail: { tree, at: last } }));
    } catch (error) {
      if (!(error instanceof BadTree)) throw error;
      this.dispatchEvent(new CustomEvent("refused", { detail: t(error.key, error.values) }));
    }
  }
}
