/**
 * The session: the text, its node in the tree, and the running request.
 *
 * Dispatches an event for each change: `text` (another text; the detail is where the caret goes, or
 * null for the end), `grown` (text was inserted), `marks` (groups, or how many are valid), `gap`,
 * `tree`, `running`, `choices`, `settings`, `problem`.
 */

import { Runner } from "./runner.js";
import { freshId } from "./dom.js";
import { History } from "./history.js";
import { movedGap, placeOf } from "./place.js";
import { completionBody, scoringBody } from "./request.js";
import { commonPrefix, TokenReader } from "./tokens.js";
import {
  add, bookmark, emptyTree, filledGapOf, forkBefore, groupsOf, makeNode, merge, ownerOf, prune, rename, ROOT, textOf,
  upTo, withScores, write,
} from "./tree.js";

export class Session extends EventTarget {
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

  #runner;
  #settings;
  #page;
  #history = new History();

  /**
   * @param {{api: import("./api.js").Api, settings: () => object,
   *   page: () => {selection: [number, number], fills: boolean}}} given
   *   `fills`: the chosen model can infill
   */
  constructor({ api, settings, page }) {
    super();
    this.#runner = new Runner(api);
    this.#runner.addEventListener("running", () => this.#tell("running"));
    this.#runner.addEventListener("problem", ({ detail }) => this.#tell("problem", detail));
    this.#settings = settings;
    this.#page = page;
  }

  /** The running request: `{kind: "writing"|"scoring"}`, or null. */
  get running() {
    return this.#runner.running;
  }

  /** Tokens and time of the last answer, or null. */
  get meter() {
    return this.#runner.meter;
  }

  /** Where Continue would write now. */
  get place() {
    const { selection, fills } = this.#page();
    const infill = this.#settings().infill && fills;
    return placeOf({ text: this.text, gap: this.gap, selection, infill });
  }

  /** The request body that `continue` would send now. */
  get body() {
    return this.#bodyAt(this.place);
  }

  /** The reader typed. Edits of the same `run` are one undo step. */
  edit(text, run) {
    this.#history.remember(this.#snapshot(), run);
    this.#setGap(movedGap(this.gap, this.text, text));
    this.text = text;
    this.#revalidate();
  }

  get canUndo() {
    return this.#history.canUndo;
  }

  /** Start a text of an empty document, or a new branch at the root. */
  begin(text, gap = null) {
    this.keep();
    this.#step();
    this.at = ROOT;
    this.#show(text);
    this.#setGap(gap);
    this.keep();
  }

  /** Show another document. `nodes` are in order of creation. */
  resume(nodes, { at = ROOT, text, gap = null } = {}) {
    let tree = emptyTree();
    // Another tab may have pruned the parent of a node.
    for (const node of nodes) if (node.id !== ROOT && tree.has(node.parent)) tree = add(tree, node);
    this.#history = new History();
    this.#runner.meter = null;
    this.tree = tree;
    this.at = tree.has(at) ? at : ROOT;
    this.#dropChoices();
    this.#show(text ?? textOf(tree, this.at));
    this.#setGap(gap);
    this.#tell("tree");
  }

  /** Merge another tree into this one, and go to one of its nodes. */
  take(other, at) {
    this.keep();
    this.#step();
    const { tree, became } = merge(this.tree, other, freshId);
    this.tree = tree;
    this.at = became.get(at);
    this.#leave();
    this.#show(textOf(tree, this.at));
    this.#tell("tree");
  }

  /** Put the typed text into the tree. */
  keep() {
    const written = write(this.tree, this.at, this.text, freshId());
    if (written.at === this.at) return;
    this.tree = written.tree;
    this.at = written.at;
    this.#refresh();
    this.#tell("tree");
  }

  /** Go to another branch. A gap that is open there stays open. */
  go(id, caret = null) {
    if (this.running !== null) return;
    this.keep();
    this.#step();
    const open = this.gap !== null || this.choices.length > 0;
    this.at = id;
    this.#leave();
    this.#show(textOf(this.tree, id), caret);
    if (open) this.#setGap(filledGapOf(this.tree, id));
    this.#tell("tree");
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
    if (this.running === null && parent !== null && parent !== ROOT) this.go(parent);
  }

  rename(id, name) {
    this.tree = rename(this.tree, id, name);
    this.#tell("tree");
  }

  bookmark(id) {
    this.tree = bookmark(this.tree, id, !this.tree.get(id).mark);
    this.#tell("tree");
  }

  /** Remove a branch. If the text is on it, go to the parent of the branch. */
  prune(id) {
    const { parent } = this.tree.get(id);
    this.tree = prune(this.tree, id);
    if (!this.tree.has(this.at)) {
      this.#step();
      this.at = parent;
      this.#leave();
      this.#show(textOf(this.tree, parent));
    }
    this.#tell("tree");
  }

  undo() {
    if (this.running === null) this.#restore(this.#history.undo(this.#snapshot()));
  }

  redo() {
    if (this.running === null) this.#restore(this.#history.redo(this.#snapshot()));
  }

  stop() {
    this.#runner.stop();
  }

  /** Open a gap at the selection, or join the open one: the text stays, the mark goes. */
  turnGap() {
    if (this.running !== null) return;
    this.#step();
    const [start, end] = this.#page().selection;
    this.#setGap(this.gap === null ? { start, end } : null);
  }

  /** Continue from the caret, or fill the gap. `count` versions, by default as the settings say. */
  async continue(count = null) {
    if (this.running !== null) return;
    const { place } = this;
    this.keep();
    this.#step();
    const body = this.#bodyAt(place);
    if (count !== null) {
      body.n = count;
      delete body.best_of;
    }
    if ((body.n ?? 1) > 1) await this.#runMany(body, place);
    else await this.#runOne(body, { ...place, lead: [] });
  }

  /** Whether the text is one that the model wrote last. */
  get canRegenerate() {
    return this.tree.get(this.at).by === "model" && textOf(this.tree, this.at) === this.text;
  }

  /** Write another version of what the model wrote last, next to it. */
  async regenerate() {
    if (this.running !== null || !this.canRegenerate) return;
    const { from, lead, tail, groups } = this.tree.get(this.at);
    this.#step();
    const settings = this.#settings();
    if (settings.seed !== null) {
      // The same seed would write the same again.
      settings.seed += 1;
      this.#tell("settings");
    }
    const place = { start: from + lead, end: this.text.length - tail, fills: tail > 0 };
    const { n: _n, best_of: _b, ...body } = this.#bodyAt(place);
    await this.#runOne(body, { ...place, from, lead: groups.filter((g) => g.end <= from + lead) });
  }

  /** Replace a group by an alternative, and continue from there. */
  async branch(index, [alternative, logprob]) {
    if (this.running !== null) return;
    this.keep();
    this.#step();
    const { start, tokens: [{ top }] } = this.groups[index];
    const shown = alternative.replace(/\r\n?/g, "\n");
    const group = { start, end: start + shown.length, tokens: [{ text: alternative, logprob, top }] };
    this.groups = [...upTo(this.groups, start), group];
    this.#setGap(null);
    this.text = this.text.slice(0, start) + shown;
    this.valid = this.text.length;
    this.#tell("text", null);
    this.#tell("marks");
    const place = { start: this.text.length, end: this.text.length, fills: false };
    const { n: _n, best_of: _b, ...body } = this.#bodyAt(place);
    await this.#runOne(body, { ...place, from: start, lead: [group] });
  }

  /** Score the current text. */
  async score() {
    if (this.running !== null || this.text === "") return;
    this.keep();
    const body = scoringBody(this.#settings(), this.text.toWellFormed());
    const groups = await this.#runner.score(body);
    if (groups === null) return;
    this.tree = withScores(this.tree, this.at, groups);
    this.#refresh();
    this.#tell("tree");
  }

  /** Close the choices, and go to the one with this index if there is one. */
  choose(index) {
    const choice = this.choices[index];
    if (choice?.node !== undefined) {
      this.go(choice.node);
      return;
    }
    this.choices = [];
    this.#tell("choices");
  }

  #bodyAt({ start, end, fills }) {
    const suffix = fills ? this.text.slice(end).toWellFormed() : "";
    return completionBody(this.#settings(), this.text.slice(0, start).toWellFormed(), suffix);
  }

  /**
   * Write one continuation into the text at `start`. `lead` are groups that stand between `from` and
   * `start` and belong to it. With `fills` the text from `end` on stays.
   */
  async #runOne(body, { start, end, fills, from = start, lead }) {
    const [head, tail] = [this.text.slice(0, start), fills ? this.text.slice(end) : ""];
    const reader = new TokenReader(start);
    const shown = upTo(this.groups, Math.min(this.valid, start));
    const gapBefore = this.gap;
    this.groups = shown;
    this.valid = start;
    this.#dropChoices();
    if (this.text !== head + tail) {
      this.text = head + tail;
      this.#tell("text", start);
    }
    if (fills) this.#setGap({ start, end: start });
    this.#tell("marks");
    let finish = null;
    const early = await this.#runner.write(body, (choice) => {
      const [units, count] = [reader.text.length, reader.groups.length];
      reader.add(choice.text, choice.logprobs);
      shown.push(...reader.groups.slice(count));
      this.text = head + reader.text + tail;
      this.valid = start + reader.text.length;
      if (fills) this.#setGap({ start, end: this.valid });
      this.#tell("grown", { at: start + units, text: reader.text.slice(units) });
      finish = choice.finish_reason ?? finish;
    });
    if (reader.groups.length > 0 || reader.text !== "" || lead.length > 0) {
      const groups = [...lead, ...reader.groups];
      const text = head.slice(from) + reader.text + tail;
      this.at = this.#hang(from, text, { groups, finish: early ?? finish, lead: start - from, tail: tail.length });
      this.#refresh();
    } else {
      // Nothing came, so the text is as it was.
      this.#show(textOf(this.tree, this.at), start);
      this.#setGap(gapBefore);
    }
    this.#tell("tree");
  }

  /** Write several continuations side by side. Each becomes a branch. */
  async #runMany(body, { start, end, fills }) {
    const tail = fills ? this.text.slice(end) : "";
    const makeChoice = () => ({ reader: new TokenReader(start), finish: null, node: undefined });
    this.choices = Array.from({ length: body.n }, makeChoice);
    this.#tell("choices");
    const early = await this.#runner.write(body, (choice) => {
      const side = this.choices[choice.index];
      side.reader.add(choice.text, choice.logprobs);
      side.finish = choice.finish_reason ?? side.finish;
      this.#tell("choices");
    });
    for (const side of this.choices) {
      if (side.reader.groups.length === 0 && side.reader.text === "") continue;
      const { text, groups } = side.reader;
      side.node = this.#hang(start, text + tail, { groups, finish: side.finish ?? early, tail: tail.length });
    }
    if (this.choices.every((side) => side.node === undefined)) this.choices = [];
    this.#tell("choices");
    this.#tell("tree");
  }

  /** Put what the model wrote into the tree. Returns the id of the new node. */
  #hang(from, text, more) {
    const parent = ownerOf(this.tree, this.at, from);
    const node = makeNode(freshId(), parent, from, text, { by: "model", ...more });
    this.tree = add(this.tree, node);
    return node.id;
  }

  #snapshot() {
    return { text: this.text, at: this.at, gap: this.gap };
  }

  /** Make the next change an undo step of its own. */
  #step() {
    this.#history.remember(this.#snapshot());
  }

  #restore(state) {
    if (state === null) return;
    // The branch may be pruned by now. Its text is still there.
    this.at = this.tree.has(state.at) ? state.at : ROOT;
    this.#leave();
    this.#show(state.text);
    this.#setGap(state.gap);
    this.#tell("tree");
  }

  #show(text, caret = null) {
    this.text = text;
    this.#refresh();
    this.#tell("text", caret);
  }

  #refresh() {
    this.groups = groupsOf(this.tree, this.at);
    this.#revalidate();
  }

  #revalidate() {
    this.valid = commonPrefix(textOf(this.tree, this.at), this.text);
    this.#tell("marks");
  }

  #setGap(gap) {
    if (gap === this.gap) return;
    this.gap = gap;
    this.#tell("gap");
  }

  /** Close what belongs to the text that is left. */
  #leave() {
    this.#setGap(null);
    this.#dropChoices();
  }

  #dropChoices() {
    if (this.choices.length === 0) return;
    this.choices = [];
    this.#tell("choices");
  }

  #tell(type, detail = undefined) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
