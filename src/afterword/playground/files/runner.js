/** Runs one request at a time, and can stop it. Does not know the text. */

import { ApiError, Interrupted, Unreachable } from "./api.js";
import { Meter } from "./meter.js";
import { canStream } from "./request.js";
import { bodyOf, groupsInText, partsOf, rendered } from "./template.js";
import { TokenReader } from "./tokens.js";

/** The tokenizer changes this text, so its tokens have no places in it. */
export class ChangedText extends Error {}

const KNOWN = [ApiError, Interrupted, Unreachable, ChangedText];
// The server then counts the tokens of each chunk, also without log-probabilities.
const COUNTED = { stream_options: { include_usage: true, continuous_usage_stats: true } };

/** Dispatches `running` when a request starts and when it ends, and `problem` with an error. */
export class Runner extends EventTarget {
  /** @type {{kind: "writing"|"scoring", abort: AbortController}|null} */
  running = null;

  /** Tokens and time of the last completion, or null before the first one. */
  meter = null;

  #api;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    super();
    this.#api = api;
  }

  stop() {
    this.running?.abort.abort();
  }

  /**
   * Run a completion. `take` gets every choice, whole or in parts.
   * @param {import("./template.js").Request} request
   * @returns {Promise<"stopped"|"interrupted"|null>} null if it was not cut short
   */
  write(request, take) {
    return this.#run("writing", async (signal) => {
      const body = await bodyOf(this.#api, request, signal);
      for await (const choice of this.#choices(body, signal)) take(choice);
      return null;
    });
  }

  /**
   * Score a text, in the chat template if the request has messages. Resolves to the text's groups,
   * or to null if there is no answer.
   */
  async score({ body, messages }) {
    let groups = null;
    await this.#run("scoring", async (signal) => {
      const wrap = messages && await rendered(this.#api, body.model, messages, signal);
      const prompt = wrap?.prompt ?? body.prompt;
      const { choices: [choice] } = await this.#api.json("/v1/completions", { ...body, prompt }, signal);
      const reader = new TokenReader();
      reader.add(choice.text, choice.logprobs);
      if (reader.text !== prompt) throw new ChangedText("the tokenizer changes this text");
      groups = wrap === null ? reader.groups : groupsInText(reader.groups, partsOf(wrap, messages));
    });
    return groups;
  }

  async *#choices(body, signal) {
    this.meter = new Meter(performance.now());
    if (canStream(body)) {
      for await (const chunk of this.#api.stream({ ...body, ...COUNTED }, signal)) {
        this.meter.add(chunk, performance.now());
        yield* chunk.choices;
      }
    } else {
      const answer = await this.#api.json("/v1/completions", body, signal);
      this.meter.add(answer, performance.now());
      yield* answer.choices;
    }
  }

  async #run(kind, work) {
    const abort = new AbortController();
    this.running = { kind, abort };
    this.dispatchEvent(new Event("running"));
    try {
      return await work(abort.signal);
    } catch (error) {
      if (error.name === "AbortError") return "stopped";
      this.dispatchEvent(new CustomEvent("problem", { detail: error }));
      if (!KNOWN.some((each) => error instanceof each)) throw error;
      return "interrupted";
    } finally {
      // If the page cannot use an answer, nobody reads the rest.
      abort.abort();
      this.running = null;
      this.dispatchEvent(new Event("running"));
    }
  }
}
