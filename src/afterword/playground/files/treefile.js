/** Files of branches: a tree as JSON, and back from an unknown source. */

import { MOST_NAME, ROOT, textOf } from "./tree.js";

const FORMAT = "afterword-branches";
const VERSION = 1;
const MOST_NODES = 20000;
const MOST_UNITS = 20_000_000;
const FINISHES = ["stop", "length", "stopped", "interrupted"];

/** The file is not a tree. `key` and `values` make a message in the reader's language. */
export class BadTree extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
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
