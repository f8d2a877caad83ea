/**
 * The tree of all texts: immutable nodes and pure functions.
 *
 * A node keeps the first `from` units of its parent's text and adds its own. So a branch anywhere
 * in a text splits no node, and no node ever changes.
 */

import { beginning } from "./excerpt.js";
import { commonPrefix, groupAt } from "./tokens.js";

export const ROOT = "root";
export const MOST_NAME = 200;

/**
 * @typedef {import("./tokens.js").Group} Group
 * @typedef {{id: string, parent: string|null, from: number, text: string, by: "you"|"model",
 *   groups: Group[], whole: boolean, name: string, finish: string|null, lead: number, tail: number,
 *   mark: boolean}} Node
 * `groups` have offsets in the node's whole text. With `whole` (the text was scored) they cover all
 * of the text, otherwise only the part after `from`. The first `lead` units of `text` are a token
 * that the reader took, the last `tail` units stood after a gap that the model filled. `mark` is a
 * bookmark.
 * @typedef {ReadonlyMap<string, Node>} Tree children come after their parents
 */

export function makeNode(id, parent, from, text, more = {}) {
  return Object.freeze({
    id, parent, from, text, by: "you", groups: [], whole: false, name: "", finish: null,
    lead: 0, tail: 0, mark: false, ...more,
  });
}

/** @returns {Tree} a tree of one empty node */
export function emptyTree() {
  return new Map([[ROOT, makeNode(ROOT, null, 0, "")]]);
}

export function add(tree, node) {
  if (tree.has(node.id) || !tree.has(node.parent)) throw new Error("a node needs an id and a parent");
  return new Map(tree).set(node.id, node);
}

const texts = new WeakMap();

/** Returns the whole text of a node. */
export function textOf(tree, id) {
  const node = tree.get(id);
  if (node.parent === null) return node.text;
  let text = texts.get(node);
  if (text === undefined) {
    // No recursion, because a long session makes a deep tree.
    const path = pathOf(tree, id);
    text = "";
    for (const step of path) {
      text = text.slice(0, step.from) + step.text;
      texts.set(step, text);
    }
  }
  return text;
}

/** Returns the nodes from the root to this one. */
export function pathOf(tree, id) {
  const path = [];
  for (let node = tree.get(id); node !== undefined; node = tree.get(node.parent)) path.push(node);
  return path.reverse();
}

/** Returns the groups of a node's whole text, in order. */
export function groupsOf(tree, id) {
  let groups = [];
  for (const node of pathOf(tree, id)) {
    if (node.whole) groups = node.groups;
    // An end token has no text. A text that continues after it does not contain it.
    else groups = [...upTo(groups, node.from).filter((g) => g.end > g.start), ...node.groups];
  }
  return groups;
}

/** Returns the groups that end at or before an offset. */
export function upTo(groups, offset) {
  return groups.slice(0, groupAt(groups, offset));
}

const indexes = new WeakMap();

/** Returns the children of a node in order of creation. */
export function childrenOf(tree, id) {
  let index = indexes.get(tree);
  if (index === undefined) {
    index = new Map();
    for (const node of tree.values()) {
      if (index.has(node.parent)) index.get(node.parent).push(node);
      else index.set(node.parent, [node]);
    }
    indexes.set(tree, index);
  }
  return index.get(id) ?? [];
}

/**
 * Returns the node on the path of `id` to hang a text on that keeps `from` units: the first one
 * whose own text is needed. A scored node keeps its scores, so the walk ends there.
 */
export function ownerOf(tree, id, from) {
  let node = tree.get(id);
  while (node.parent !== null && from <= node.from && !node.whole) node = tree.get(node.parent);
  return node.id;
}

/**
 * Returns the last fork at or before an offset of a node's text: the ids of the nodes that differ
 * from there on, and the index of the one in the text. Null if the text has no fork there.
 */
export function forkBefore(tree, id, offset) {
  const path = pathOf(tree, id);
  let found = null;
  path.forEach((owner, i) => {
    const next = path[i + 1];
    const length = textOf(tree, owner.id).length;
    const end = next?.from ?? length;
    const children = childrenOf(tree, owner.id);
    for (const { from } of children) {
      // A child in the middle of a text is an alternative to the rest of that text.
      if (from < end && from <= offset && from >= (found?.from ?? 0)) {
        found = { from, owner, taken: owner.id };
      }
    }
    if (next === undefined || end > offset) return;
    const several = end < length || children.filter(({ from }) => from === end).length > 1;
    if (several && end >= (found?.from ?? 0)) found = { from: end, owner, taken: next.id };
  });
  if (found === null) return null;
  const { from, owner, taken } = found;
  const ids = childrenOf(tree, owner.id).filter((node) => node.from === from).map((node) => node.id);
  if (from < textOf(tree, owner.id).length) ids.unshift(owner.id);
  return { from, ids, index: ids.indexOf(taken) };
}

/** Returns the gap that a node filled, or null if it filled none. */
export function filledGapOf(tree, id) {
  const { from, lead, tail } = tree.get(id);
  return tail === 0 ? null : { start: from + lead, end: textOf(tree, id).length - tail };
}

/**
 * Put a text into the tree that was edited at node `at`. Returns the tree, and the text's node.
 *
 * An edit of a node that the reader wrote last replaces it, so pauses in typing make no branches.
 */
export function write(tree, at, text, id) {
  if (textOf(tree, at) === text) return { tree, at };
  const here = tree.get(at);
  const own = here.parent !== null && here.by === "you" && here.name === "" && !here.whole;
  const base = own && childrenOf(tree, at).length === 0 ? here.parent : at;
  const kept = commonPrefix(textOf(tree, base), text);
  const node = makeNode(id, ownerOf(tree, base, kept), kept, text.slice(kept));
  if (base === at) return { tree: add(tree, node), at: id };
  const next = new Map(tree);
  next.delete(at);
  return { tree: next.set(id, node), at: id };
}

/** Returns the tree with the scores of a node's whole text. */
export function withScores(tree, id, groups) {
  return replace(tree, id, { groups, whole: true });
}

export function rename(tree, id, name) {
  return replace(tree, id, { name: beginning(name.trim(), MOST_NAME) });
}

/** Set or remove a bookmark. */
export function bookmark(tree, id, mark) {
  return replace(tree, id, { mark });
}

function replace(tree, id, changes) {
  return new Map(tree).set(id, Object.freeze({ ...tree.get(id), ...changes }));
}

/** Returns the tree without a node and its descendants. */
export function prune(tree, id) {
  if (id === ROOT) throw new Error("the root stays");
  const gone = new Set([id]);
  for (const node of tree.values()) if (gone.has(node.parent)) gone.add(node.id);
  return new Map([...tree].filter(([key]) => !gone.has(key)));
}

/**
 * Merge another tree into a tree. Nodes that both have stay; the others keep their ids unless an id
 * is taken. Returns the merged tree, and a map from the other's ids to the new ones.
 */
export function merge(tree, other, freshId) {
  const merged = new Map(tree);
  const became = new Map([[ROOT, ROOT]]);
  for (const node of other.values()) {
    if (node.id === ROOT) continue;
    const parent = became.get(node.parent);
    const here = tree.get(node.id);
    const same = here !== undefined && here.parent === parent && here.from === node.from
      && here.text === node.text;
    const id = here === undefined || same ? node.id : freshId();
    became.set(node.id, id);
    if (!same) merged.set(id, Object.freeze({ ...node, id, parent }));
  }
  return { tree: merged, became };
}
