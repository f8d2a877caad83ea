/** Search through all branches. */

import { beginning, ending } from "./excerpt.js";
import { ROOT, textOf } from "./tree.js";

const AROUND = 40;

/**
 * Returns the places of a text in the branches, one for each node: in its own part of the text, or
 * in its name. Letters match in either case.
 * @returns {{id: string, end: number, before: string, found: string, after: string}[]} `end` is the
 *   offset after the match in the node's whole text
 */
export function search(tree, query) {
  const wanted = folded(query);
  const hits = [];
  for (const { id, from, name } of tree.values()) {
    if (id === ROOT) continue;
    const text = textOf(tree, id);
    // A match may begin in the text before the node. It ends in its own.
    const first = Math.max(0, from - wanted.length + 1);
    const at = folded(text.slice(first)).indexOf(wanted);
    if (at === -1 && !folded(name).includes(wanted)) continue;
    const start = at === -1 ? from : first + at;
    const end = at === -1 ? from : start + wanted.length;
    hits.push({
      id, end,
      before: ending(text.slice(0, start), AROUND),
      found: text.slice(start, end),
      after: beginning(text.slice(end), AROUND),
    });
  }
  return hits;
}

/** Returns a text in lower case, as long as it was. */
function folded(text) {
  // The one letter whose lower case is longer: offsets behind it would shift.
  return text.replaceAll("\u0130", "i").toLowerCase();
}
