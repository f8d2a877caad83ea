/** Settings and text in the fragment of a link. Browsers send fragments to no server. */

import { readSettings } from "./request.js";

const NAME = "w";
const MOST_UNITS = 1_000_000;

/** The link cannot be read. */
export class BadLink extends Error {}

/** Returns the fragment without `#`. It never contains a key. */
export async function toFragment({ settings, text, suffix }) {
  const json = JSON.stringify({ v: 1, settings, text, suffix });
  const packed = await piped(new Blob([json]), new CompressionStream("deflate-raw"));
  let binary = "";
  for (const byte of packed) binary += String.fromCharCode(byte);
  const coded = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `${NAME}=${coded}`;
}

/** Returns the page in a fragment, or null if the fragment has none. Throws BadLink. */
export async function fromFragment(fragment) {
  const coded = new RegExp(`^#?${NAME}=(.*)$`).exec(fragment)?.[1];
  if (coded === undefined) return null;
  let raw;
  try {
    const binary = atob(coded.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (unit) => unit.charCodeAt(0));
    raw = JSON.parse(await unpacked(bytes));
  } catch (error) {
    throw new BadLink("the link is incomplete or was changed", { cause: error });
  }
  if (raw?.v !== 1 || typeof raw.text !== "string" || typeof raw.suffix !== "string") {
    throw new BadLink("the link has another version");
  }
  // A text area has one kind of line end.
  const [text, suffix] = [raw.text, raw.suffix].map((part) => part.replace(/\r\n?/g, "\n"));
  return { settings: readSettings(raw.settings), text, suffix };
}

async function piped(blob, stream) {
  return new Uint8Array(await new Response(blob.stream().pipeThrough(stream)).arrayBuffer());
}

/** Inflate step by step up to a limit, because few bytes can unpack to very many. */
async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.pipeThrough(new TextDecoderStream("utf-8", { fatal: true })).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text;
    text += value;
    if (text.length > MOST_UNITS) {
      await reader.cancel();
      throw new BadLink("the link is too long");
    }
  }
}
