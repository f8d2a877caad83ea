/**
 * A text laid out in blocks of whole lines, so that a change costs the layout of one block.
 *
 * Offsets are UTF-16 units of the whole text. Every block but the last ends with a line end, so the
 * blocks break their lines exactly as the whole text does.
 */

import { commonPrefix, commonSuffix } from "./tokens.js";

/** Characters written from right to left, and marks that turn the direction. */
const BIDI = /[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
/** A block ends at the first line end after this many units. */
const LEAST_UNITS = 1000;

export class Overlay {
  #box;
  #text = "";
  /** @type {{element: HTMLElement, node: Text}[]} */
  #blocks = [makeBlock("")];
  // Where each block starts, in the order of the blocks.
  #starts = [0];
  #probe = document.createRange();
  #version = 0;

  constructor(box) {
    this.#box = box;
    box.replaceChildren(this.#blocks[0].element);
  }

  get box() {
    return this.#box;
  }

  get text() {
    return this.#text;
  }

  /** Whether the text has a direction of its own in some paragraph. */
  get isBidi() {
    return this.#box.dataset.bidi !== undefined;
  }

  /** Changes when blocks are replaced: earlier ranges are invalid then. */
  get version() {
    return this.#version;
  }

  /** Show a text. Only blocks that differ change. */
  show(text) {
    const before = this.#text;
    if (text === before) return;
    const head = commonPrefix(before, text);
    const gone = before.length - head - commonSuffix(before, text, head);
    this.#text = text;
    const added = text.slice(head, head + gone + text.length - before.length);
    // Only then, because it costs the layout of the whole paragraph at each key.
    if (BIDI.test(added)) this.#box.dataset.bidi = "";
    else if (this.isBidi && !BIDI.test(text)) delete this.#box.dataset.bidi;
    const first = this.#blockAt(head);
    let last = this.#blockAt(Math.max(head, head + gone - 1));
    const start = this.#starts[first];
    const endOf = (block) => (this.#starts[block + 1] ?? before.length) + text.length - before.length;
    // A block that lost its line end continues in the next block, so both change.
    while (last + 1 < this.#blocks.length && text[endOf(last) - 1] !== "\n") last += 1;
    const chunks = chunksOf(text.slice(start, endOf(last)));
    if (first === last && chunks.length === 1) {
      const { node } = this.#blocks[first];
      node.replaceData(head - start, gone, added);
    } else {
      this.#replace(first, last, chunks);
    }
    this.#count(first);
  }

  /** Returns a static range: the browser does not update it when the text changes. */
  range(start, end) {
    const [from, to] = [this.#place(start), this.#place(end, true)];
    return new StaticRange({
      startContainer: from.node, startOffset: from.offset, endContainer: to.node, endOffset: to.offset,
    });
  }

  /** Returns the boxes of a part of the text, in pixels of the window. */
  rects(start, end) {
    const [from, to] = [this.#place(start), this.#place(end, true)];
    // One live range serves all calls, because every change of the text updates every range.
    this.#probe.setStart(from.node, from.offset);
    this.#probe.setEnd(to.node, to.offset);
    return [...this.#probe.getClientRects()];
  }

  /** Returns the place of a caret at an offset: `{left, top, bottom}` in pixels of the window. */
  caret(offset) {
    if (offset > 0 && this.#text[offset - 1] !== "\n") {
      const before = this.rects(offset - 1, offset).at(-1);
      if (before !== undefined) return { left: before.right, top: before.top, bottom: before.bottom };
    }
    const after = this.rects(offset, offset + 1)[0];
    if (after !== undefined) return { left: after.left, top: after.top, bottom: after.bottom };
    // After a line end at the end of the text.
    const { left, bottom } = this.#blocks.at(-1).element.getBoundingClientRect();
    const height = parseFloat(getComputedStyle(this.#box).lineHeight);
    return { left, top: bottom - height, bottom };
  }

  /** Returns the first offset whose line ends below `y`, in pixels of the window. */
  offsetBelow(y) {
    const bottomOf = (block) => this.#blocks[block].element.getBoundingClientRect().bottom;
    const block = firstWhere(0, this.#blocks.length, (i) => bottomOf(i) > y);
    if (block === this.#blocks.length) return this.#text.length;
    const end = this.#starts[block + 1] ?? this.#text.length;
    return firstWhere(this.#starts[block], end, (offset) => {
      const { bottom } = this.rects(offset, offset + 1).at(-1) ?? { bottom: Infinity };
      return bottom > y;
    });
  }

  #replace(first, last, chunks) {
    const fresh = chunks.map(makeBlock);
    const old = this.#blocks.splice(first, last - first + 1, ...fresh);
    old[0].element.before(...fresh.map(({ element }) => element));
    for (const { element } of old) element.remove();
    this.#version += 1;
  }

  /** Compute the starts of the blocks after this one. */
  #count(from) {
    this.#starts.length = from + 1;
    for (let i = from; i + 1 < this.#blocks.length; i += 1) {
      this.#starts.push(this.#starts[i] + this.#blocks[i].node.length);
    }
  }

  #blockAt(offset) {
    return firstWhere(1, this.#starts.length, (i) => this.#starts[i] > offset) - 1;
  }

  /** Returns node and offset. With `ends`, the end of a block belongs to that block. */
  #place(offset, ends = false) {
    const within = Math.min(offset, this.#text.length);
    const block = this.#blockAt(ends ? Math.max(0, within - 1) : within);
    return { node: this.#blocks[block].node, offset: within - this.#starts[block] };
  }
}

function makeBlock(text) {
  const element = document.createElement("div");
  const node = document.createTextNode(text);
  element.append(node);
  return { element, node };
}

/** Split a text at line ends into chunks of LEAST_UNITS or a little more. */
function chunksOf(text) {
  const chunks = [];
  let start = 0;
  while (text.length - start > 2 * LEAST_UNITS) {
    const end = text.indexOf("\n", start + LEAST_UNITS) + 1;
    if (end === 0 || end === text.length) break;
    chunks.push(text.slice(start, end));
    start = end;
  }
  chunks.push(text.slice(start));
  return chunks;
}

/** Returns the least integer from `low` on for which `holds` is true, or `high`. */
function firstWhere(low, high, holds) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
