/** The server's public API over fetch. Knows the key, does not know the page. */

import { events, Interrupted, partsOf } from "./sse.js";

/** An error answer in OpenAI's envelope. */
export class ApiError extends Error {
  constructor(status, { message, param = null, code = null }, retryAfter_s = null) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter_s });
  }
}

/** No answer: the server or the network is down. */
export class Unreachable extends Error {}

export { Interrupted };

const MINUTE_MS = 60_000;

export class Api {
  #key;
  #askKey;
  #scarceUntil_ms = 0;

  /**
   * @param {{get(): string|null}} key
   * @param {(refused: ApiError) => Promise<boolean>} askKey asks for a key; resolves to true if
   *   the reader gave one
   */
  constructor(key, askKey) {
    this.#key = key;
    this.#askKey = askKey;
  }

  /** Returns the JSON of an answer. Throws ApiError, Unreachable or AbortError. */
  async json(path, body = undefined, signal = undefined) {
    const reply = await this.#ask(path, body, signal);
    return readWhole(() => reply.json());
  }

  async text(path, signal = undefined) {
    const reply = await this.#ask(path, undefined, signal);
    return readWhole(() => reply.text());
  }

  /** Yields the chunks of a streamed completion. Throws what `json` throws, and Interrupted. */
  async *stream(body, signal) {
    const reply = await this.#ask("/v1/completions", { ...body, stream: true }, signal);
    const chunks = events(partsOf(reply.body));
    for (;;) {
      const { done, value } = await readWhole(() => chunks.next());
      if (done) return;
      if (value.error !== undefined) throw new ApiError(200, value.error);
      yield value;
    }
  }

  /** Whether the server is up. Never asks for a key. */
  async healthy() {
    try {
      return (await fetch("/health", { cache: "no-store" })).ok;
    } catch (error) {
      if (error instanceof TypeError) return false;
      throw error;
    }
  }

  /** Whether less than half of the key's requests in any minute are left. */
  get isScarce() {
    return performance.now() < this.#scarceUntil_ms;
  }

  async #ask(path, body, signal) {
    for (;;) {
      const reply = await this.#fetch(path, body, signal);
      if (reply.ok) return reply;
      const refused = await problemOf(reply);
      if (refused.status !== 401 || !(await this.#askKey(refused))) throw refused;
    }
  }

  async #fetch(path, body, signal) {
    const headers = {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const key = this.#key.get();
    // Fetch refuses other characters, as of a key that was copied with an ellipsis. The server says what is wrong.
    if (key !== null) headers.Authorization = `Bearer ${key.replace(/[^!-~]/g, "?")}`;
    const method = body === undefined ? "GET" : "POST";
    const reply = await readWhole(() => fetch(path, {
      method, headers, signal, body: body && JSON.stringify(body), cache: "no-store",
    }));
    const [limit, left] = ["limit", "remaining"].map((what) => reply.headers.get(`x-ratelimit-${what}-requests`));
    if (limit !== null) this.#scarceUntil_ms = 2 * Number(left) < Number(limit) ? performance.now() + MINUTE_MS : 0;
    return reply;
  }
}

/** Fetch throws a TypeError if the connection breaks, and for no other reason. */
async function readWhole(read) {
  try {
    return await read();
  } catch (error) {
    if (error instanceof TypeError) throw new Unreachable("no answer", { cause: error });
    throw error;
  }
}

async function problemOf(reply) {
  const wait = Number(reply.headers.get("retry-after") ?? NaN);
  const retryAfter_s = Number.isFinite(wait) ? wait : null;
  const text = await readWhole(() => reply.text());
  let error;
  try {
    error = JSON.parse(text)?.error;
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
  }
  // A proxy may answer in a format of its own.
  if (typeof error?.message !== "string") error = { message: `HTTP ${reply.status}` };
  return new ApiError(reply.status, error, retryAfter_s);
}
