/**
 * What is being written: the text, where it stands in the tree, and the request under way.
 *
 * Says what changed by events: `text` (all of it), `grown` (text was added at the end), `marks`
 * (what is known of tokens), `tree`, `running`, `choices`, `problem`.
 */

import { ApiError, Interrupted, Unreachable } from "./api.js";
import { freshId } from "./dom.js";
import { History } from "./history.js";
import { canStream, completionBody, scoringBody } from "./request.js";
import { commonPrefix, TokenReader } from "./tokens.js";
import {
  add, emptyTree, groupsOf, makeNode, merge, prune, rename, ROOT, textOf, upTo, withScores, write,
} from "./tree.js";

/** The model reads this text as another one, so its tokens cannot be shown in it. */
export class UnlikeText extends Error {}

const KNOWN = [ApiError, Interrupted, Unreachable, UnlikeText];

export class Session extends EventTarget {
  tree = emptyTree();
  at = ROOT;
  text = "";
  suffix = "";
  groups = [];
  /** Groups that end at or before this offset are of the text as it stands. */
  valid = 0;
  /** @type {{kind: "writing"|"scoring", abort: AbortController}|null} */
  running = null;
  /** Choices side by side: `{text, groups, finish, node}`; empty when there are none. */
  choices = [];

  #api;
  #settings;
  #limits;
  #history = new History();
  #last = ROOT;

  /**
   * @param {{api: import("./api.js").Api, settings: () => object, limits: () => object}} given
   */
  constructor({ api, settings, limits }) {
    super();
    this.#api = api;
    this.#settings = settings;
    this.#limits = limits;
  }

  /** The body that a continuation of the page as it stands would send. */
  get body() {
    return completionBody(this.#settings(), this.text.toWellFormed(), this.suffix.toWellFormed(), this.#limits());
  }

  /** The reader typed; `run` groups what is one step to take back. */
  edit(text, run) {
    this.#history.remember(this.#snapshot(), run);
    this.text = text;
    this.#revalidate();
  }

  editSuffix(suffix, run) {
    this.#history.remember(this.#snapshot(), run);
    this.suffix = suffix;
  }

  pause() {
    this.#history.pause();
  }

  /** Begin anew with this text; what was there stays a branch. */
  begin(text, suffix = "") {
    this.keep();
    this.#step();
    this.suffix = suffix;
    this.at = ROOT;
    this.#show(text);
    this.keep();
  }

  /** Take up where an earlier visit ended; `nodes` in the order of their making. */
  resume(nodes, at, text, suffix) {
    let tree = emptyTree();
    // Another tab may have pruned what one here grew from.
    for (const node of nodes) if (node.id !== ROOT && tree.has(node.parent)) tree = add(tree, node);
    this.tree = tree;
    this.at = tree.has(at) ? at : ROOT;
    this.suffix = suffix;
    this.#show(text ?? textOf(tree, this.at));
    this.#tell("tree");
  }

  /** Put another tree beside the one at hand, and go to one of its nodes. */
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

  /** Put what was typed into the tree. */
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

  /** Cut a branch off. Where the text stood on it, it goes back to where the branch began. */
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
    return this.#restore(this.#history.undo(this.#snapshot()));
  }

  redo() {
    return this.#restore(this.#history.redo(this.#snapshot()));
  }

  stop() {
    this.running?.abort.abort();
  }

  /** Go on from the end of the text, or fill the gap before the suffix. */
  async continue() {
    if (this.running !== null) return;
    this.keep();
    this.#step();
    const body = this.body;
    if ((body.n ?? 1) > 1) await this.#runMany(body);
    else await this.#runOne(body, this.text.length, []);
  }

  /** Take another token at a group's place, and go on from there. */
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

  /** Ask what the model makes of the text as it stands. */
  async score() {
    if (this.running !== null || this.text === "") return;
    this.keep();
    await this.#run("scoring", async (signal) => {
      const body = scoringBody(this.#settings(), this.text.toWellFormed(), this.#limits());
      const { choices: [choice] } = await this.#api.json("/v1/completions", body, signal);
      const reader = new TokenReader();
      reader.add(choice.text, choice.logprobs);
      if (reader.text !== this.text) throw new UnlikeText("the model spells this text differently");
      this.tree = withScores(this.tree, this.at, reader.groups);
      this.#refresh();
      this.#tell("tree");
    });
  }

  /** Take one of the choices side by side, or none. */
  choose(index) {
    const choice = this.choices[index];
    this.choices = [];
    this.#tell("choices");
    if (choice?.node !== undefined) this.go(choice.node);
  }

  /** One continuation, in place. `lead` are groups that were put before it. */
  async #runOne(body, from, lead) {
    const [head, parent] = [this.text, this.at];
    const reader = new TokenReader(head.length);
    const shown = upTo(this.groups, this.valid);
    this.groups = shown;
    this.#dropChoices();
    const end = await this.#run("writing", async (signal) => {
      let finish = null;
      for await (const choice of this.#answer(body, signal)) {
        const [units, count] = [reader.text.length, reader.groups.length];
        reader.add(choice.text, choice.logprobs);
        shown.push(...reader.groups.slice(count));
        this.text = head + reader.text;
        this.valid = this.text.length;
        this.#tell("grown", reader.text.slice(units));
        finish = choice.finish_reason ?? finish;
      }
      return finish;
    });
    if (reader.groups.length > 0 || reader.text !== "" || lead.length > 0) {
      const text = head.slice(from) + reader.text;
      const groups = [...lead, ...reader.groups];
      this.#hang(makeNode(freshId(), parent, from, text, { by: "model", groups, finish: end }));
      this.at = this.#last;
      this.#refresh();
    }
    this.#tell("tree");
  }

  /** Several continuations side by side; each becomes a branch, and the reader takes one. */
  async #runMany(body) {
    const [from, parent] = [this.text.length, this.at];
    const makeChoice = () => ({ reader: new TokenReader(from), finish: null, node: undefined });
    this.choices = Array.from({ length: body.n }, makeChoice);
    this.#tell("choices");
    const end = await this.#run("writing", async (signal) => {
      for await (const choice of this.#answer(body, signal)) {
        const side = this.choices[choice.index];
        side.reader.add(choice.text, choice.logprobs);
        side.finish = choice.finish_reason ?? side.finish;
        this.#tell("choices");
      }
      return null;
    });
    for (const side of this.choices) {
      if (side.reader.groups.length === 0 && side.reader.text === "") continue;
      this.#hang(makeNode(freshId(), parent, from, side.reader.text, {
        by: "model", groups: side.reader.groups, finish: side.finish ?? end,
      }));
      side.node = this.#last;
    }
    if (this.choices.every((side) => side.node === undefined)) this.choices = [];
    this.#tell("choices");
    this.#tell("tree");
  }

  /** The choices of a body as they come, whole or in parts. */
  async *#answer(body, signal) {
    if (canStream(body)) {
      for await (const chunk of this.#api.stream(body, signal)) yield* chunk.choices;
    } else {
      yield* (await this.#api.json("/v1/completions", body, signal)).choices;
    }
  }

  /** One request at a time. Gives what `work` does, or why it ended early. */
  async #run(kind, work) {
    const abort = new AbortController();
    this.running = { kind, abort };
    this.#tell("running");
    try {
      return await work(abort.signal);
    } catch (error) {
      if (error.name === "AbortError") return "stopped";
      this.#tell("problem", error);
      if (!KNOWN.some((kind) => error instanceof kind)) throw error;
      return "interrupted";
    } finally {
      this.running = null;
      this.#tell("running");
    }
  }

  #hang(node) {
    this.tree = add(this.tree, node);
    this.#last = node.id;
  }

  #snapshot() {
    return { text: this.text, suffix: this.suffix, at: this.at };
  }

  /** What comes next can be taken back by itself. */
  #step() {
    this.#history.remember(this.#snapshot());
  }

  #restore(state) {
    if (state === null || this.running !== null) return false;
    this.suffix = state.suffix;
    // A branch may have been pruned since; its text can still be had.
    this.at = this.tree.has(state.at) ? state.at : ROOT;
    this.#dropChoices();
    this.#show(state.text);
    this.#tell("tree");
    return true;
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
