/** Where Continue writes, and how a gap follows edits. Knows offsets, not the page. */

import { commonPrefix, commonSuffix } from "./tokens.js";

/**
 * @typedef {{start: number, end: number}} Span
 * @typedef {{start: number, end: number, fills: boolean}} Place
 * The model reads the text before `start`. With `fills` it also reads the text from `end` on, which
 * stays; otherwise that text leaves the page and stays in its branch.
 */

/**
 * Returns where Continue writes.
 * @param {{text: string, gap: Span|null, selection: [number, number], infill: boolean}} page
 *   `infill`: the reader wants the model to write towards the text after the caret
 * @returns {Place}
 */
export function placeOf({ text, gap, selection: [from, to], infill }) {
  const span = gap ?? (infill ? { start: from, end: to } : null);
  if (span !== null && span.end < text.length) return { ...span, fills: true };
  if (gap !== null) return { start: gap.start, end: text.length, fills: false };
  return { start: to, end: text.length, fills: false };
}

/** Returns a gap of `before` at its place in `after`, which differs in one part. */
export function movedGap(gap, before, after) {
  if (gap === null || before === after) return gap;
  const head = commonPrefix(before, after);
  const gone = before.length - head - commonSuffix(before, after, head);
  const added = after.length - before.length;
  const moved = (offset) => {
    if (offset < head) return offset;
    return offset >= head + gone ? offset + added : head;
  };
  const start = moved(gap.start);
  return { start, end: Math.max(start, moved(gap.end)) };
}
