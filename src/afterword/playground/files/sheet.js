/**
 * The sheet: the text, its node in the tree, the gap in it, and undo. Sends no requests.
 *
 * Dispatches an event for each change: `text` (another text; the detail is where the caret goes, or
 * null for the end), `marks` (groups, or how many are valid), `gap`, `tree`, `choices`. The methods
 * at the end are for the session, which writes into the sheet.
 */

import { freshId } from "./dom.js";
import { History } from "./history.js";
import { movedGap } from "./place.js";
import { cut, passagesOf, push } from "./passages.js";
import { commonPrefix } from "./tokens.js";
import {
  add, bookmark, emptyTree, filledGapOf, forkBefore, groupsOf, makeNode, merge, ownerOf, prune, rename, ROOT, textOf,
  write,
} from "./tree.js";

export class Sheet extends EventTarget {
  tree = emptyTree();
  at = ROOT;
  text = "";
  /** The gap that the model fills, with what it filled in; null if there is none. */
  gap = null;
  groups = [];
  /** Groups that end at or before this offset match the current text. */
  valid = 0;
  /** Choices side by side: `{reader, finish, node}`; empty if there are none. */
  choices = [];

  #history = new History();
  #page;

  /** @param {() => {selection: [number, number]}} page */
  constructor(page) {
    super();
    this.#page = page;
  }

  /** Whether a request writes or scores now. Then the text stays as it is. */
  get busy() {
    return false;
  }

  /** Returns who wrote the first `units` of the text, as passages. */
  passages(units = this.text.length) {
    const kept = Math.min(units, commonPrefix(textOf(this.tree, this.at), this.text));
    const passages = cut(passagesOf(this.tree, this.at), kept);
    push(passages, "you", this.text.slice(kept, units));
    return passages;
  }

  /** The reader typed. Edits of the same `run` are one undo step. */
  edit(text, run) {
    this.#history.remember(this.#snapshot(), run);
    this.setGap(movedGap(this.gap, this.text, text));
    this.text = text;
    this.#revalidate();
  }

  get canUndo() {
    return this.#history.canUndo;
  }

  /** Start a text of an empty document, or a new branch at the root. */
  begin(text, gap = null) {
    this.keep();
    this.step();
    this.at = ROOT;
    this.show(text);
    this.setGap(gap);
    this.keep();
  }

  /** Show another document. `nodes` are in order of creation. */
  resume(nodes, { at = ROOT, text, gap = null } = {}) {
    let tree = emptyTree();
    // Another tab may have pruned the parent of a node.
    for (const node of nodes) if (node.id !== ROOT && tree.has(node.parent)) tree = add(tree, node);
    this.#history = new History();
    this.tree = tree;
    this.at = tree.has(at) ? at : ROOT;
    this.dropChoices();
    this.show(text ?? textOf(tree, this.at));
    this.setGap(gap);
    this.tell("tree");
  }

  /** Merge another tree into this one, and go to one of its nodes. */
  take(other, at) {
    this.keep();
    this.step();
    const { tree, became } = merge(this.tree, other, freshId);
    this.tree = tree;
    this.at = became.get(at);
    this.leave();
    this.show(textOf(tree, this.at));
    this.tell("tree");
  }

  /** Put the typed text into the tree. */
  keep() {
    const written = write(this.tree, this.at, this.text, freshId());
    if (written.at === this.at) return;
    this.tree = written.tree;
    this.at = written.at;
    this.refresh();
    this.tell("tree");
  }

  /** Go to another branch. A gap that is open there stays open. */
  go(id, caret = null) {
    if (this.busy) return;
    this.keep();
    this.step();
    const open = this.gap !== null || this.choices.length > 0;
    this.at = id;
    this.leave();
    this.show(textOf(this.tree, id), caret);
    if (open) this.setGap(filledGapOf(this.tree, id));
    this.tell("tree");
  }

  /** The last fork at or before the caret, or null: see `forkBefore`. */
  get fork() {
    if (textOf(this.tree, this.at) !== this.text) return null;
    return forkBefore(this.tree, this.at, this.#page().selection[1]);
  }

  /** Go to the next alternative (`step` 1) or the one before (−1) at the last fork. */
  walk(step) {
    this.keep();
    const { fork } = this;
    if (fork === null) return;
    const { ids, index } = fork;
    this.go(ids[(index + step + ids.length) % ids.length]);
  }

  /** Go to the text that this one was made from. */
  climb() {
    const { parent } = this.tree.get(this.at);
    if (!this.busy && parent !== null && parent !== ROOT) this.go(parent);
  }

  rename(id, name) {
    this.tree = rename(this.tree, id, name);
    this.tell("tree");
  }

  bookmark(id) {
    this.tree = bookmark(this.tree, id, !this.tree.get(id).mark);
    this.tell("tree");
  }

  /** Remove a branch. If the text is on it, go to the parent of the branch. */
  prune(id) {
    const { parent } = this.tree.get(id);
    this.tree = prune(this.tree, id);
    if (!this.tree.has(this.at)) {
      this.step();
      this.at = parent;
      this.leave();
      this.show(textOf(this.tree, parent));
    }
    this.tell("tree");
  }

  undo() {
    if (!this.busy) this.#restore(this.#history.undo(this.#snapshot()));
  }

  redo() {
    if (!this.busy) this.#restore(this.#history.redo(this.#snapshot()));
  }

  /** Open a gap at the selection, or join the open one: the text stays, the mark goes. */
  turnGap() {
    if (this.busy) return;
    this.step();
    const [start, end] = this.#page().selection;
    this.setGap(this.gap === null ? { start, end } : null);
  }

  /** Put what the model wrote into the tree. Returns the id of the new node. */
  hang(part) {
    const node = this.nodeOf(part);
    this.tree = add(this.tree, node);
    return node.id;
  }

  /** Returns a node of what the model wrote after the first `from` units of the text. */
  nodeOf({ from, text, more }) {
    return makeNode(freshId(), ownerOf(this.tree, this.at, from), from, text, { by: "model", ...more });
  }

  /** Make the next change an undo step of its own. */
  step() {
    this.#history.remember(this.#snapshot());
  }

  show(text, caret = null) {
    this.text = text;
    this.refresh();
    this.tell("text", caret);
  }

  refresh() {
    this.groups = groupsOf(this.tree, this.at);
    this.#revalidate();
  }

  setGap(gap) {
    if (gap === this.gap) return;
    this.gap = gap;
    this.tell("gap");
  }

  /** Close what belongs to the text that is left. */
  leave() {
    this.setGap(null);
    this.dropChoices();
  }

  dropChoices() {
    if (this.choices.length === 0) return;
    this.choices = [];
    this.tell("choices");
  }

  tell(type, detail = undefined) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #snapshot() {
    return { text: this.text, at: this.at, gap: this.gap };
  }

  #restore(state) {
    if (state === null) return;
    // The branch may be pruned by now. Its text is still there.
    this.at = this.tree.has(state.at) ? state.at : ROOT;
    this.leave();
    this.show(state.text);
    this.setGap(state.gap);
    this.tell("tree");
  }

  #revalidate() {
    this.valid = commonPrefix(textOf(this.tree, this.at), this.text);
    this.tell("marks");
  }
}
