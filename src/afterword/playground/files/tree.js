/**
 * The tree of all texts: immutable nodes and pure functions.
 *
 * A node keeps the first `from` units of its parent's text and adds its own. So a branch anywhere
 * in a text splits no node, and no node ever changes.
 */

import { commonPrefix, groupAt } from "./tokens.js";

export const ROOT = "root";
const FORMAT = "afterword-branches";
const VERSION = 1;
const MOST_NODES = 20000;
const MOST_UNITS = 20_000_000;
const MOST_NAME = 200;
const FINISHES = ["stop", "length", "stopped", "interrupted"];

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

/** The file is not a tree. `key` and `values` make a message in the reader's language. */
export class BadTree extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

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
  return replace(tree, id, { name: name.trim().slice(0, MOST_NAME) });
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

export function toJson(tree) {
  return JSON.stringify({ format: FORMAT, version: VERSION, nodes: [...tree.values()] });
}

/** Parse a file from an unknown source. Throws BadTree with what is wrong and where. */
export function fromJson(json) {
  let file;
  try {
    file = JSON.parse(json);
  } catch (error) {
    throw new BadTree("import.notJson", { detail: error.message });
  }
  if (file?.format !== FORMAT) throw new BadTree("import.notBranches", { format: FORMAT });
  if (file.version !== VERSION) throw new BadTree("import.version", { version: String(file.version) });
  if (!Array.isArray(file.nodes) || file.nodes.length === 0) throw new BadTree("import.noNodes");
  if (file.nodes.length > MOST_NODES) throw new BadTree("import.tooMany", { most: MOST_NODES });
  return readNodes(file.nodes);
}

function readNodes(nodes) {
  let tree = new Map();
  let units = 0;
  nodes.forEach((raw, i) => {
    const wrong = (field) => new BadTree("import.node", { number: i + 1, field });
    const node = readNode(raw, wrong);
    if (i === 0) {
      if (node.id !== ROOT || node.parent !== null || node.text !== "") throw wrong("id");
    } else {
      if (tree.has(node.id)) throw wrong("id");
      if (!tree.has(node.parent)) throw wrong("parent");
      if (node.from > textOf(tree, node.parent).length) throw wrong("from");
    }
    tree.set(node.id, node);
    const length = textOf(tree, node.id).length;
    units += length;
    if (node.lead + node.tail > node.text.length) throw wrong("tail");
    if (units > MOST_UNITS) throw new BadTree("import.tooLong", { most: MOST_UNITS });
    let end = node.whole ? 0 : node.from;
    for (const group of node.groups) {
      if (group.start < end || group.end < group.start || group.end > length) throw wrong("groups");
      end = group.end;
    }
  });
  return tree;
}

const isText = (value) => typeof value === "string";
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const isLogprob = (value) => typeof value === "number" && Number.isFinite(value) && value <= 0.001;

/** Returns a node with the known fields only, each checked. Throws what `wrong` makes. */
function readNode(raw, wrong) {
  const checks = {
    id: (v) => isText(v) && v.length > 0 && v.length <= 64,
    parent: (v) => v === null || isText(v),
    from: isCount,
    text: (v) => isText(v) && !v.includes("\r"),
    by: (v) => v === "you" || v === "model",
    groups: (v) => Array.isArray(v) && v.every(isGroup),
    whole: (v) => typeof v === "boolean",
    name: (v) => isText(v) && v.length <= MOST_NAME,
    finish: (v) => v === null || FINISHES.includes(v),
    lead: isCount,
    tail: isCount,
    mark: (v) => typeof v === "boolean",
  };
  // Files of the first release have no such fields.
  const before = { lead: 0, tail: 0, mark: false };
  if (raw === null || typeof raw !== "object") throw wrong("node");
  const node = {};
  for (const [field, check] of Object.entries(checks)) {
    const value = raw[field] ?? before[field] ?? raw[field];
    if (!check(value)) throw wrong(field);
    node[field] = value;
  }
  node.groups = node.groups.map(({ start, end, tokens }) => ({
    start,
    end,
    tokens: tokens.map(({ text, logprob, top }) => ({ text, logprob, top })),
  }));
  return Object.freeze(node);
}

function isGroup(group) {
  return isCount(group?.start) && isCount(group.end) && Array.isArray(group.tokens)
    && group.tokens.length > 0 && group.tokens.every(isToken);
}

function isToken(token) {
  return isText(token?.text) && (token.logprob === null || isLogprob(token.logprob))
    && Array.isArray(token.top) && token.top.length <= 2000
    && token.top.every((pair) => Array.isArray(pair) && isText(pair[0]) && isLogprob(pair[1]));
}
