/** Server-sent events of completions: bytes in, chunks out. */

/** The stream ended without its last event: what came is not the whole answer. */
export class Interrupted extends Error {}

/**
 * The JSON of every event up to `[DONE]`. Throws Interrupted.
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

/** Chunks of a body's stream, for browsers whose streams are not iterable. */
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
