/** Server-sent events of completions: bytes in, chunks out. */

/** The stream ended without `[DONE]`, so the answer is incomplete. */
export class Interrupted extends Error {}

/**
 * Yields the JSON of every event before `[DONE]`. Throws Interrupted if the stream ends early.
 * @param {AsyncIterable<Uint8Array>} bytes
 */
export async function* events(bytes) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const part of bytes) {
    rest += decoder.decode(part, { stream: true });
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue;
      const payload = frame.slice("data: ".length);
      if (payload === "[DONE]") return;
      yield JSON.parse(payload);
    }
  }
  throw new Interrupted("the stream ended early");
}

/** Yields the chunks of a body, for browsers whose streams are not iterable. */
export async function* partsOf(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.releaseLock();
  }
}
