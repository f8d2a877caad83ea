/** Counts tokens and time of one answer. The clock is the caller's. */

export class Meter {
  #start_ms;
  #first_ms = null;
  #last_ms = null;
  #byChoice = new Map();
  #total = null;
  #searched = false;

  constructor(now_ms) {
    this.#start_ms = now_ms;
  }

  /** Count a chunk of a stream, or a whole answer. */
  add({ choices, usage, infill }, now_ms) {
    this.#searched = infill?.found_by === "search";
    for (const { index, logprobs, text } of choices) {
      const listed = logprobs?.tokens.length ?? (text === "" ? 0 : 1);
      const before = this.#byChoice.get(index) ?? 0;
      // The server counts each choice in each chunk. Servers that do not are counted here.
      this.#byChoice.set(index, choices.length === 1 && usage ? usage.completion_tokens : before + listed);
    }
    // What a search tried is not in the text.
    if (usage && choices.length !== 1 && !this.#searched) this.#total = usage.completion_tokens;
    if (this.tokens === 0) return;
    this.#first_ms ??= now_ms;
    this.#last_ms = now_ms;
  }

  get tokens() {
    return this.#total ?? [...this.#byChoice.values()].reduce((sum, count) => sum + count, 0);
  }

  /** Seconds from the request to the first token, or null before it. */
  get first_s() {
    return this.#first_ms === null ? null : (this.#first_ms - this.#start_ms) / 1000;
  }

  /** Tokens a second after the first one, or null if all tokens came at once, as those of a search do. */
  get tokens_per_s() {
    if (this.#searched) return null;
    const took_s = (this.#last_ms - this.#first_ms) / 1000;
    return this.tokens > 1 && took_s > 0 ? (this.tokens - 1) / took_s : null;
  }
}
