/** The difference of two texts, word by word: Myers' algorithm between the common ends. */

const MOST_EDITS = 1500;
// A tenth of a second, wherever the texts repeat themselves.
const MOST_STEPS = 10_000_000;

// Scripts without spaces are compared character by character.
const UNSPACED = String.raw`[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]`;
const WORD = new RegExp(
  String.raw`\s*(?:${UNSPACED}|(?:(?!${UNSPACED})[\p{L}\p{N}\p{M}'’])+|\S)|\s+`, "gu",
);

/** Words and single marks, each with the white space before it. */
export function words(text) {
  return text.match(WORD) ?? [];
}

/**
 * @returns {{same: boolean, text: string}[][]} the parts of a and of b. After MOST_EDITS edits or
 * MOST_STEPS steps, everything between the common ends counts as different.
 */
export function compare(a, b) {
  const [left, right] = [words(a), words(b)];
  let head = 0;
  const most = Math.min(left.length, right.length);
  while (head < most && left[head] === right[head]) head += 1;
  let tail = 0;
  while (tail < most - head && left.at(-1 - tail) === right.at(-1 - tail)) tail += 1;
  const kept = [new Set(), new Set()];
  const middle = [left, right].map((side) => side.slice(head, side.length - tail));
  for (const [i, j] of matches(...middle)) {
    kept[0].add(head + i);
    kept[1].add(head + j);
  }
  return [left, right].map((side, which) => {
    const isSame = (i) => i < head || i >= side.length - tail || kept[which].has(i);
    return parts(side, isSame);
  });
}

function parts(side, isSame) {
  const found = [];
  side.forEach((word, i) => {
    const same = isSame(i);
    if (found.at(-1)?.same === same) found.at(-1).text += word;
    else found.push({ same, text: word });
  });
  return found;
}

/** Pairs of positions with equal words, along a shortest edit path from a to b. */
function matches(a, b) {
  const most = Math.min(a.length + b.length, MOST_EDITS);
  const trace = [];
  // How far each diagonal k = x - y has come; it stands at k + zero.
  const zero = most + 1;
  const front = new Int32Array(2 * zero + 1);
  let steps = 0;
  for (let edits = 0; edits <= most && steps <= MOST_STEPS; edits += 1) {
    trace.push(front.slice(zero - edits - 1, zero + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      const from = cameFrom(front, zero, edits, k);
      let x = front[zero + from] + (from < k ? 1 : 0);
      steps -= x;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      steps += x + 1;
      front[zero + k] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(trace, a, b);
    }
  }
  return [];
}

/** Returns the diagonal that the path to diagonal k comes from: one word more of b, or of a. */
function cameFrom(front, zero, edits, k) {
  const down = k === -edits || (k !== edits && front[zero + k - 1] < front[zero + k + 1]);
  return down ? k + 1 : k - 1;
}

function walkBack(trace, a, b) {
  const pairs = [];
  let [x, y] = [a.length, b.length];
  for (let edits = trace.length - 1; edits >= 0; edits -= 1) {
    const zero = edits + 1;
    const before = cameFrom(trace[edits], zero, edits, x - y);
    const start = edits === 0 ? 0 : trace[edits][zero + before];
    const stop = edits === 0 ? 0 : start - before;
    while (x > start && y > stop && a[x - 1] === b[y - 1]) {
      x -= 1;
      y -= 1;
      pairs.push([x, y]);
    }
    [x, y] = [start, stop];
  }
  return pairs;
}
