/** One request at a time: who waits for it, how it is stopped, how it ended. Knows no text. */

import { ApiError, Interrupted, Unreachable } from "./api.js";
import { canStream } from "./request.js";
import { TokenReader } from "./tokens.js";

/** The model reads this text as another one, so its tokens cannot be shown in it. */
export class ChangedText extends Error {}

const KNOWN = [ApiError, Interrupted, Unreachable, ChangedText];

/** Says `running` when a request begins and when it has ended, and `problem` with an error. */
export class Runner extends EventTarget {
  /** @type {{kind: "writing"|"scoring", abort: AbortController}|null} */
  running = null;

  #api;

  /** @param {import("./api.js").Api} api */
  constructor(api) {
    super();
    this.#api = api;
  }

  stop() {
    this.running?.abort.abort();
  }

  /** Hand the choices of a completion to `take`, whole or in parts; why it ended early, or null. */
  write(body, take) {
    return this.#run("writing", async (signal) => {
      for await (const choice of this.#choices(body, signal)) take(choice);
      return null;
    });
  }

  /** What the model makes of the text in a scoring body, or null where there is no answer. */
  async score(body) {
    let groups = null;
    await this.#run("scoring", async (signal) => {
      const { choices: [choice] } = await this.#api.json("/v1/completions", body, signal);
      const reader = new TokenReader();
      reader.add(choice.text, choice.logprobs);
      if (reader.text !== body.prompt) throw new ChangedText("the model spells this text differently");
      ({ groups } = reader);
    });
    return groups;
  }

  async *#choices(body, signal) {
    if (canStream(body)) {
      for await (const chunk of this.#api.stream(body, signal)) yield* chunk.choices;
    } else {
      yield* (await this.#api.json("/v1/completions", body, signal)).choices;
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
      this.running = null;
      this.dispatchEvent(new Event("running"));
    }
  }
}
