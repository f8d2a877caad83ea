/** The path of a text as passages, and as files for other programs. */

import { beginning } from "./excerpt.js";
import { markdown } from "./prose.js";
import { pathOf, textOf } from "./tree.js";

export const FORMATS = ["text", "markdown", "path", "tree"];

/**
 * Returns the parts of a node's text with who wrote them, in order. Neighbours of one writer are
 * one part.
 */
export function passagesOf(tree, id) {
  let parts = [];
  for (const node of pathOf(tree, id)) {
    parts = cut(parts, node.from);
    const end = node.text.length - node.tail;
    const blank = blankOf(node);
    push(parts, "you", node.text.slice(0, blank));
    push(parts, node.by, node.text.slice(blank, end));
    // The text after a filled gap is the reader's.
    push(parts, "you", node.text.slice(end));
  }
  return parts;
}

/** Returns the length of the blank line that the page put before an answer: a lead without tokens. */
function blankOf({ from, text, groups, lead, whole }) {
  const hasTokens = !whole && groups.some(({ start }) => start < from + lead);
  return hasTokens || text.slice(0, lead).trim() !== "" ? 0 : lead;
}

/** Add a text to passages. */
export function push(parts, by, text) {
  if (text === "") return;
  if (parts.at(-1)?.by === by) parts.at(-1).text += text;
  else parts.push({ by, text });
}

/** Returns the passages of the first `units` of a text. */
export function cut(parts, units) {
  const kept = [];
  let left = units;
  for (const { by, text } of parts) {
    if (left > 0) kept.push({ by, text: text.slice(0, left) });
    left -= text.length;
  }
  return kept;
}

/** Returns `{name, type, text}` of a file. `tree` as JSON is the caller's. */
export function fileOf(format, { tree, at, title }) {
  const base = beginning(title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, ""), 60) || "text";
  if (format === "text") {
    return { name: `${base}.txt`, type: "text/plain", text: textOf(tree, at) };
  }
  const passages = passagesOf(tree, at);
  if (format === "markdown") {
    return { name: `${base}.md`, type: "text/markdown", text: markdown(title, passages) };
  }
  const steps = pathOf(tree, at).slice(1).map(({ by, from, text, groups, name, finish }) => ({
    by, from, text, name, finish,
    tokens: groups.flatMap(({ tokens }) => tokens.map(({ text: token, logprob }) => ({ token, logprob }))),
  }));
  const file = { format: "afterword-path", version: 1, title, text: textOf(tree, at), passages, steps };
  return { name: `${base}.json`, type: "application/json", text: JSON.stringify(file, null, 2) };
}
