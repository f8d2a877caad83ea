/** Places of the nodes of a tree on a map: depth to the right, leaves downwards. */

import { childrenOf, ROOT } from "./tree.js";

/**
 * Returns `{column, row}` of every node. Leaves have whole rows in the order of the tree; a parent is
 * in the middle of its children.
 * @param {import("./tree.js").Tree} tree
 * @returns {Map<string, {column: number, row: number}>}
 */
export function layout(tree) {
  const places = new Map();
  let rows = 0;
  // No recursion, because trees are deep. A node comes off the stack after its children.
  const stack = [{ id: ROOT, column: 0, visited: false }];
  while (stack.length > 0) {
    const step = stack.at(-1);
    const children = childrenOf(tree, step.id);
    if (children.length > 0 && !step.visited) {
      step.visited = true;
      for (const { id } of [...children].reverse()) stack.push({ id, column: step.column + 1, visited: false });
      continue;
    }
    stack.pop();
    const ends = [children[0], children.at(-1)].map((child) => (child === undefined ? rows : places.get(child.id).row));
    if (children.length === 0) rows += 1;
    places.set(step.id, { column: step.column, row: (ends[0] + ends[1]) / 2 });
  }
  return places;
}
