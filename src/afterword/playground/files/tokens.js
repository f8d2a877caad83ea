/** Groups of tokens with places in a text, made from the API's arrays of log-probabilities. */

const BYTES = /^bytes:(?:\\x[0-9a-f]{2})+$/;
const encoder = new TextEncoder();

/**
 * @typedef {[text: string, logprob: number]} Alternative
 * @typedef {{text: string, logprob: number|null, top: Alternative[]}} Token
 * @typedef {{start: number, end: number, tokens: Token[]}} Group
 * A group is one token, or several tokens that form a character together. `start` and `end` are
 * UTF-16 offsets in the whole text. `logprob` is a natural logarithm, or null for the first token
 * of a text, which nothing predicts.
 */

/** Returns the bytes of a token of the API. */
export function bytesOf(token) {
  if (!BYTES.test(token)) return encoder.encode(token);
  return Uint8Array.from(token.matchAll(/\\x(..)/g), ([, hex]) => parseInt(hex, 16));
}

/** Whether a token contains only a part of a character, so it is not a text by itself. */
export function isPartial(token) {
  return BYTES.test(token);
}

/** Returns a token for display: white space is visible, bytes of partial characters are hex. */
export function spelled(token) {
  if (!isPartial(token)) return visible(token);
  return token
    .slice("bytes:".length)
    .replace(/(?:\\x[89a-f].)+/g, (high) => `‹${high.slice(2).replaceAll("\\x", " ").toUpperCase()}›`)
    .replace(/\\x([0-7].)/g, (_, hex) => visible(String.fromCharCode(parseInt(hex, 16))));
}

function visible(text) {
  return text
    .replaceAll(" ", "·")
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥")
    .replace(/[\p{Cc}\p{Cf}]/gu, (c) => `‹${c.codePointAt(0).toString(16).toUpperCase()}›`);
}

/** Counts the bytes that the last character of a UTF-8 sequence still needs. */
class Utf8 {
  missing = 0;

  feed(bytes) {
    for (const byte of bytes) {
      if (byte >= 0xf0 && byte < 0xf8) this.missing = 3;
      else if (byte >= 0xe0 && byte < 0xf0) this.missing = 2;
      else if (byte >= 0xc2 && byte < 0xe0) this.missing = 1;
      else if (byte >= 0x80 && byte < 0xc0) this.missing = Math.max(0, this.missing - 1);
      else this.missing = 0;
    }
  }
}

/**
 * Builds a text and its groups from the chunks of one choice.
 *
 * Offsets of the API count code points from the start of the prompt. A text area counts UTF-16
 * units and has one kind of line end. `base` is the offset of the choice in the text area.
 */
export class TokenReader {
  /** @type {Group[]} */
  groups = [];
  text = "";
  #base;
  #origin = null;
  #utf8 = new Utf8();
  // Code points and units of the text so far; the text may arrive later than its tokens.
  #walked = { points: 0, units: 0 };
  #units = [0];
  #afterReturn = false;
  #offsets = [];

  constructor(base = 0) {
    this.#base = base;
  }

  /** Add one chunk, or a whole choice. */
  add(text, logprobs) {
    this.#append(text);
    for (let i = 0; i < (logprobs?.tokens.length ?? 0); i += 1) {
      const token = logprobs.tokens[i];
      this.#origin ??= logprobs.text_offset[i];
      const top = Object.entries(logprobs.top_logprobs[i] ?? {}).sort((a, b) => b[1] - a[1]);
      const read = { text: token, logprob: logprobs.token_logprobs[i], top };
      if (this.#utf8.missing > 0 && isPartial(token) && this.groups.length > 0) {
        this.groups.at(-1).tokens.push(read);
      } else {
        this.groups.push({ start: 0, end: 0, tokens: [read] });
        this.#offsets.push(logprobs.text_offset[i] - this.#origin);
      }
      this.#utf8.feed(bytesOf(token));
    }
    this.#place();
  }

  #append(text) {
    let added = "";
    for (const point of text) {
      const shown = point === "\r" ? "\n" : point === "\n" && this.#afterReturn ? "" : point;
      this.#afterReturn = point === "\r";
      added += shown;
      this.#walked.units += shown.length;
      this.#walked.points += 1;
      this.#units.push(this.#walked.units);
    }
    this.text += added;
  }

  /** Place the groups whose text has arrived since the last call. */
  #place() {
    const end = this.text.length;
    for (let i = this.groups.length - 1; i >= 0; i -= 1) {
      const group = this.groups[i];
      const start = this.#units[this.#offsets[i]] ?? end;
      const next = i + 1 < this.groups.length ? (this.#units[this.#offsets[i + 1]] ?? end) : end;
      const [from, to] = [this.#base + start, this.#base + next];
      if (group.start === from && group.end === to && i < this.groups.length - 1) break;
      group.start = from;
      group.end = to;
    }
  }
}

/** Returns the sum of the log-probabilities of a group, or null if a token has none. */
export function logprobOf(group) {
  let sum = 0;
  for (const token of group.tokens) {
    if (token.logprob === null) return null;
    sum += token.logprob;
  }
  return sum;
}

/**
 * Returns the entropy of a group's first token in bits, or null without alternatives. All tokens
 * that are not shown count as one outcome, so this is a lower bound.
 */
export function entropyOf(group) {
  const [first] = group.tokens;
  if (first.top.length === 0) return null;
  let left = 1;
  let bits = 0;
  for (const [, logprob] of first.top) {
    const p = Math.exp(logprob);
    left -= p;
    if (p > 0) bits -= p * Math.log2(p);
  }
  if (left > 1e-9) bits -= left * Math.log2(left);
  return bits;
}

/** Returns the index of the first group that ends after an offset. */
export function groupAt(groups, offset) {
  let low = 0;
  let high = groups.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (groups[middle].end <= offset) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Returns figures of the groups in a part of the text, without tokens that have no logprob. */
export function figures(groups, start = 0, end = Infinity) {
  let tokens = 0;
  let total = 0;
  for (let i = groupAt(groups, start); i < groups.length && groups[i].start < end; i += 1) {
    for (const token of groups[i].tokens) {
      if (token.logprob === null) continue;
      tokens += 1;
      total += token.logprob;
    }
  }
  const mean = tokens > 0 ? total / tokens : null;
  return { tokens, total, mean, perplexity: mean === null ? null : Math.exp(-mean) };
}

// Texts are compared in long parts first, which browsers do fast.
const PART_UNITS = 4096;

/** Returns the length of the common prefix of two texts, never inside a surrogate pair. */
export function commonPrefix(a, b) {
  const most = Math.min(a.length, b.length);
  let i = 0;
  while (i + PART_UNITS <= most && a.slice(i, i + PART_UNITS) === b.slice(i, i + PART_UNITS)) {
    i += PART_UNITS;
  }
  while (i < most && a.charCodeAt(i) === b.charCodeAt(i)) i += 1;
  if (i > 0 && i < Math.max(a.length, b.length) && (a.charCodeAt(i - 1) & 0xfc00) === 0xd800) i -= 1;
  return i;
}

/** Returns the length of the common suffix of two texts, after the first `head` units of both. */
export function commonSuffix(a, b, head) {
  const most = Math.min(a.length, b.length) - head;
  const partOf = (text, i) => text.slice(text.length - i - PART_UNITS, text.length - i);
  let i = 0;
  while (i + PART_UNITS <= most && partOf(a, i) === partOf(b, i)) i += PART_UNITS;
  while (i < most && a.charCodeAt(a.length - 1 - i) === b.charCodeAt(b.length - 1 - i)) i += 1;
  return i;
}
