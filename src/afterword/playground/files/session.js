/**
 * The session: a sheet that the model writes into.
 *
 * Dispatches, besides the events of the sheet: `grown` (text was inserted), `running`, `settings`,
 * `problem`, and `ended` if the model wrote nothing because it ended the text at once.
 */

import { Runner } from "./runner.js";
import { push } from "./passages.js";
import { placeOf } from "./place.js";
import { completionBody, scoringBody } from "./request.js";
import { Sheet } from "./sheet.js";
import { asks, BREAK, messagesOf } from "./template.js";
import { TokenReader } from "./tokens.js";
import { add, textOf, upTo, withScores } from "./tree.js";

export class Session extends Sheet {
  #runner;
  #settings;
  #page;
  // Returns what the running request has written so far, as parts of the tree.
  #written = () => [];

  /**
   * @param {{api: import("./api.js").Api, settings: () => object,
   *   page: () => {selection: [number, number], fills: boolean, wraps: boolean}}} given
   *   `fills`: the chosen model can infill; `wraps`: the page puts prompts into its chat template
   */
  constructor({ api, settings, page }) {
    super(page);
    this.#runner = new Runner(api);
    this.#runner.addEventListener("running", () => this.tell("running"));
    this.#runner.addEventListener("problem", ({ detail }) => this.tell("problem", detail));
    this.#settings = settings;
    this.#page = page;
  }

  get busy() {
    return this.running !== null;
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
    const { selection, fills, wraps } = this.#page();
    // A chat has no place for text after the caret.
    const [gap, infill] = wraps ? [null, false] : [this.gap, this.#settings().infill && fills];
    return placeOf({ text: this.text, gap, selection, infill });
  }

  /** The request that `continue` would send now. @returns {import("./template.js").Request} */
  get request() {
    return this.#requestAt(this.place);
  }

  /** The whole text as messages, or null without a chat template. */
  get messages() {
    return this.#page().wraps ? messagesOf(this.passages()) : null;
  }

  /** Whether Continue would answer an instruction in the chat template. */
  get answers() {
    return this.#page().wraps && asks(messagesOf(this.passages(this.place.start)));
  }

  /** The tree and its node, with what a running request has written so far. */
  get kept() {
    const nodes = this.#written().map((part) => this.nodeOf(part));
    const at = nodes.length > 0 && this.choices.length === 0 ? nodes[0].id : this.at;
    return { tree: nodes.reduce(add, this.tree), at };
  }

  resume(...given) {
    this.#runner.meter = null;
    super.resume(...given);
  }

  stop() {
    this.#runner.stop();
  }

  /** Continue from the caret, or fill the gap. `count` versions, by default as the settings say. */
  async continue(count = null) {
    if (this.busy) return;
    const { place } = this;
    this.keep();
    this.step();
    const request = this.#requestAt(place);
    if (count !== null) {
      request.body.n = count;
      delete request.body.best_of;
    }
    const head = this.text.slice(0, place.start);
    const before = this.answers && head.trim() !== "" && !head.endsWith("\n") ? BREAK : "";
    if ((request.body.n ?? 1) > 1) await this.#runMany(request, place, before);
    else await this.#runOne(request, { ...place, lead: [], before });
  }

  /** Whether the text is one that the model wrote last. */
  get canRegenerate() {
    return this.tree.get(this.at).by === "model" && textOf(this.tree, this.at) === this.text;
  }

  /** Write another version of what the model wrote last, next to it. */
  async regenerate() {
    if (this.busy || !this.canRegenerate) return;
    const { from, lead, tail, groups } = this.tree.get(this.at);
    this.step();
    const settings = this.#settings();
    if (settings.seed !== null) {
      // The same seed would write the same again.
      settings.seed += 1;
      this.tell("settings");
    }
    const place = { start: from + lead, end: this.text.length - tail, fills: tail > 0 };
    const taken = groups.filter((group) => group.start >= from && group.end <= from + lead);
    await this.#runOne(single(this.#requestAt(place)), { ...place, from, lead: taken });
  }

  /** Replace a group by an alternative, and continue from there. */
  async branch(index, [alternative, logprob]) {
    if (this.busy) return;
    this.keep();
    this.step();
    const { start, tokens: [{ top }] } = this.groups[index];
    const shown = alternative.replace(/\r\n?/g, "\n");
    const group = { start, end: start + shown.length, tokens: [{ text: alternative, logprob, top }] };
    this.groups = [...upTo(this.groups, start), group];
    this.setGap(null);
    this.text = this.text.slice(0, start) + shown;
    this.valid = this.text.length;
    this.tell("text", null);
    this.tell("marks");
    const place = { start: this.text.length, end: this.text.length, fills: false };
    await this.#runOne(single(this.#requestAt(place, shown)), { ...place, from: start, lead: [group] });
  }

  /** Score the current text. */
  async score() {
    if (this.busy || this.text === "") return;
    this.keep();
    const { messages } = this;
    const body = scoringBody(this.#settings(), this.text.toWellFormed());
    const groups = await this.#runner.score({ body, messages });
    if (groups === null) return;
    this.tree = withScores(this.tree, this.at, groups);
    this.refresh();
    this.tell("tree");
  }

  /** Close the choices, and go to the one with this index if there is one. */
  choose(index) {
    const choice = this.choices[index];
    if (choice?.node !== undefined) {
      this.go(choice.node);
      return;
    }
    this.choices = [];
    this.tell("choices");
  }

  /** Returns the request at a place. The text before it ends with what was `taken` for the model. */
  #requestAt({ start, end, fills }, taken = "") {
    const suffix = fills ? this.text.slice(end).toWellFormed() : "";
    const body = completionBody(this.#settings(), this.text.slice(0, start).toWellFormed(), suffix);
    if (!this.#page().wraps || fills) return { body, messages: null };
    const passages = this.passages(start - taken.length);
    push(passages, "model", taken);
    return { body, messages: messagesOf(passages) };
  }

  /**
   * Write one continuation into the text. `lead` are groups that stand between `from` and `start` and
   * belong to it. `before` goes in front of it. With `fills` the text from `end` on stays.
   */
  async #runOne(request, { start: at, end, fills, from = at, lead, before = "" }) {
    const [head, tail] = [this.text.slice(0, at) + before, fills ? this.text.slice(end) : ""];
    const start = head.length;
    const reader = new TokenReader(start);
    const shown = upTo(this.groups, Math.min(this.valid, at));
    const gapBefore = this.gap;
    this.groups = shown;
    this.valid = start;
    this.dropChoices();
    if (this.text !== head + tail) {
      this.text = head + tail;
      this.tell("text", start);
    }
    if (fills) this.setGap({ start, end: start });
    this.tell("marks");
    const side = { reader, finish: null };
    const place = { from, front: head.slice(from), lead, tail };
    const early = await this.#write(request, [side], place, (choice) => {
      const [units, count] = [reader.text.length, reader.groups.length];
      reader.add(choice.text, choice.logprobs);
      shown.push(...reader.groups.slice(count));
      this.text = head + reader.text + tail;
      this.valid = start + reader.text.length;
      if (fills) this.setGap({ start, end: this.valid });
      this.tell("grown", { at: start + units, text: reader.text.slice(units) });
      side.finish = choice.finish_reason ?? side.finish;
    });
    side.finish ??= early;
    const part = partOf(side, place);
    if (part !== null) {
      this.at = this.hang(part);
      this.refresh();
    } else {
      // Nothing came, so the text is as it was.
      this.show(textOf(this.tree, this.at), at);
      this.setGap(gapBefore);
      if (side.finish === "stop") this.tell("ended");
    }
    this.tell("tree");
  }

  /** Run a request that writes `sides` at a place. Returns why it was cut short, or null. */
  async #write(request, sides, place, take) {
    this.#written = () => sides.map((side) => partOf(side, place)).filter((part) => part !== null);
    try {
      return await this.#runner.write(request, take);
    } finally {
      this.#written = () => [];
    }
  }

  /** Write several continuations side by side. Each becomes a branch. */
  async #runMany(request, { start: from, end, fills }, before) {
    const tail = fills ? this.text.slice(end) : "";
    const start = from + before.length;
    const makeChoice = () => ({ reader: new TokenReader(start), finish: null, node: undefined });
    this.choices = Array.from({ length: request.body.n }, makeChoice);
    this.tell("choices");
    const place = { from, front: before, lead: [], tail };
    const early = await this.#write(request, this.choices, place, (choice) => {
      const side = this.choices[choice.index];
      side.reader.add(choice.text, choice.logprobs);
      side.finish = choice.finish_reason ?? side.finish;
      this.tell("choices");
    });
    for (const side of this.choices) {
      side.finish ??= early;
      const part = partOf(side, place);
      if (part !== null) side.node = this.hang(part);
    }
    if (this.choices.every((side) => side.node === undefined)) this.choices = [];
    this.tell("choices");
    this.tell("tree");
  }
}

/**
 * Returns what the tree keeps of a continuation, or null if nothing came. `front` and `tail` stand
 * around it, `lead` are the groups of `front` that belong to it.
 */
function partOf({ reader, finish }, { from, front, lead, tail }) {
  if (reader.groups.length === 0 && reader.text === "" && lead.length === 0) return null;
  const groups = [...lead, ...reader.groups];
  const more = { groups, finish, lead: front.length, tail: tail.length };
  return { from, text: front + reader.text + tail, more };
}

/** Returns a request for one continuation. */
function single({ body: { n: _n, best_of: _b, ...body }, messages }) {
  return { body, messages };
}
