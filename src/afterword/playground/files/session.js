/**
 * The session: the text, its node in the tree, and the running request.
 *
 * Dispatches an event for each change: `text` (another text), `grown` (text was appended), `marks`
 * (groups, or how many are valid), `suffix`, `tree`, `running`, `choices`, `problem`.
 */

import { Runner } from "./runner.js";
import { freshId } from "./dom.js";
import { History } from "./history.js";
import { completionBody, scoringBody } from "./request.js";
import { commonPrefix, TokenReader } from "./tokens.js";
import {
  add, emptyTree, groupsOf, makeNode, merge, prune, rename, ROOT, textOf, upTo, withScores, write,
} from "./tree.js";

export class Session extends EventTarget {
  tree = emptyTree();
  at = ROOT;
  text = "";
  suffix = "";
  groups = [];
  /** Groups that end at or before this offset match the current text. */
  valid = 0;
  /** Choices side by side: `{reader, finish, node}`; empty if there are none. */
  choices = [];

  #runner;
  #settings;
  #limits;
  #history = new History();

  /**
   * @param {{api: import("./api.js").Api, settings: () => object, limits: () => object}} given
   */
  constructor({ api, settings, limits }) {
    super();
    this.#runner = new Runner(api);
    this.#runner.addEventListener("running", () => this.#tell("running"));
    this.#runner.addEventListener("problem", ({ detail }) => this.#tell("problem", detail));
    this.#settings = settings;
    this.#limits = limits;
  }

  /** The running request: `{kind: "writing"|"scoring"}`, or null. */
  get running() {
    return this.#runner.running;
  }

  /** The request body that `continue` would send now. */
  get body() {
    return completionBody(this.#settings(), this.text.toWellFormed(), this.suffix.toWellFormed(), this.#limits());
  }

  /** The reader typed. Edits of the same `run` are one undo step. */
  edit(text, run) {
    this.#history.remember(this.#snapshot(), run);
    this.text = text;
    this.#revalidate();
  }

  editSuffix(suffix, run) {
    this.#history.remember(this.#snapshot(), run);
    this.suffix = suffix;
    this.#tell("suffix");
  }

  get canUndo() {
    return this.#history.canUndo;
  }

  /** Start a new text. The old one stays as a branch. */
  begin(text, suffix = "") {
    this.keep();
    this.#step();
    this.suffix = suffix;
    this.at = ROOT;
    this.#show(text);
    this.keep();
  }

  /** Restore an earlier visit. `nodes` are in order of creation. */
  resume(nodes, at, text, suffix) {
    let tree = emptyTree();
    // Another tab may have pruned the parent of a node.
    for (const node of nodes) if (node.id !== ROOT && tree.has(node.parent)) tree = add(tree, node);
    this.tree = tree;
    this.at = tree.has(at) ? at : ROOT;
    this.suffix = suffix;
    this.#show(text ?? textOf(tree, this.at));
    this.#tell("tree");
  }

  /** Merge another tree into this one, and go to one of its nodes. */
  take(other, at) {
    this.keep();
    this.#step();
    const { tree, became } = merge(this.tree, other, freshId);
    this.tree = tree;
    this.at = became.get(at);
    this.#dropChoices();
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

  /** Go to another branch. */
  go(id) {
    if (this.running !== null) return;
    this.keep();
    this.#step();
    this.at = id;
    this.#dropChoices();
    this.#show(textOf(this.tree, id));
    this.#tell("tree");
  }

  rename(id, name) {
    this.tree = rename(this.tree, id, name);
    this.#tell("tree");
  }

  /** Remove a branch. If the text is on it, go to the parent of the branch. */
  prune(id) {
    const { parent } = this.tree.get(id);
    this.tree = prune(this.tree, id);
    if (!this.tree.has(this.at)) {
      this.#step();
      this.at = parent;
      this.#dropChoices();
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

  /** Continue the text, or fill the gap before the suffix. */
  async continue() {
    if (this.running !== null) return;
    this.keep();
    this.#step();
    const body = this.body;
    if ((body.n ?? 1) > 1) await this.#runMany(body);
    else await this.#runOne(body, this.text.length, []);
  }

  /** Replace a group by an alternative, and continue from there. */
  async branch(index, [alternative, logprob]) {
    if (this.running !== null) return;
    this.keep();
    this.#step();
    const { start, tokens: [{ top }] } = this.groups[index];
    const shown = alternative.replace(/\r\n?/g, "\n");
    const token = { text: alternative, logprob, top };
    const group = { start, end: start + shown.length, tokens: [token] };
    this.groups = [...upTo(this.groups, start), group];
    this.text = this.text.slice(0, start) + shown;
    this.valid = this.text.length;
    this.#tell("text");
    this.#tell("marks");
    const { n: _n, best_of: _b, ...body } = this.body;
    await this.#runOne(body, start, [group]);
  }

  /** Score the current text. */
  async score() {
    if (this.running !== null || this.text === "") return;
    this.keep();
    const body = scoringBody(this.#settings(), this.text.toWellFormed(), this.#limits());
    const groups = await this.#runner.score(body);
    if (groups === null) return;
    this.tree = withScores(this.tree, this.at, groups);
    this.#refresh();
    this.#tell("tree");
  }

  /** Close the choices, and go to the one with this index if there is one. */
  choose(index) {
    const choice = this.choices[index];
    this.choices = [];
    this.#tell("choices");
    if (choice?.node !== undefined) this.go(choice.node);
  }

  /** Write one continuation into the text. `lead` are groups that come before it. */
  async #runOne(body, from, lead) {
    const [head, parent] = [this.text, this.at];
    const reader = new TokenReader(head.length);
    const shown = upTo(this.groups, this.valid);
    this.groups = shown;
    this.#dropChoices();
    let finish = null;
    const early = await this.#runner.write(body, (choice) => {
      const [units, count] = [reader.text.length, reader.groups.length];
      reader.add(choice.text, choice.logprobs);
      shown.push(...reader.groups.slice(count));
      this.text = head + reader.text;
      this.valid = this.text.length;
      this.#tell("grown", reader.text.slice(units));
      finish = choice.finish_reason ?? finish;
    });
    if (reader.groups.length > 0 || reader.text !== "" || lead.length > 0) {
      const text = head.slice(from) + reader.text;
      const groups = [...lead, ...reader.groups];
      this.at = this.#hang(parent, from, text, groups, early ?? finish);
      this.#refresh();
    }
    this.#tell("tree");
  }

  /** Write several continuations side by side. Each becomes a branch. */
  async #runMany(body) {
    const [from, parent] = [this.text.length, this.at];
    const makeChoice = () => ({ reader: new TokenReader(from), finish: null, node: undefined });
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
      side.node = this.#hang(parent, from, text, groups, side.finish ?? early);
    }
    if (this.choices.every((side) => side.node === undefined)) this.choices = [];
    this.#tell("choices");
    this.#tell("tree");
  }

  /** Put what the model wrote into the tree. Returns the id of the new node. */
  #hang(parent, from, text, groups, finish) {
    const node = makeNode(freshId(), parent, from, text, { by: "model", groups, finish });
    this.tree = add(this.tree, node);
    return node.id;
  }

  #snapshot() {
    return { text: this.text, suffix: this.suffix, at: this.at };
  }

  /** Make the next change an undo step of its own. */
  #step() {
    this.#history.remember(this.#snapshot());
  }

  #restore(state) {
    if (state === null) return;
    this.suffix = state.suffix;
    // The branch may be pruned by now. Its text is still there.
    this.at = this.tree.has(state.at) ? state.at : ROOT;
    this.#dropChoices();
    this.#show(state.text);
    this.#tell("tree");
  }

  #show(text) {
    this.text = text;
    this.#refresh();
    this.#tell("text");
  }

  #refresh() {
    this.groups = groupsOf(this.tree, this.at);
    this.#revalidate();
  }

  #revalidate() {
    this.valid = commonPrefix(textOf(this.tree, this.at), this.text);
    this.#tell("marks");
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
