// The pure modules of the playground, in Node.

import assert from "node:assert/strict";
import { test } from "node:test";

const FILES = new URL("../../src/afterword/playground/files/", import.meta.url);
const load = (name) => import(new URL(name, FILES));

const tokens = await load("tokens.js");
const trees = await load("tree.js");
const files = await load("treefile.js");
const template = await load("template.js");
const { compare, words } = await load("diff.js");
const { events, Interrupted } = await load("sse.js");
const { History } = await load("history.js");
const request = await load("request.js");
const { fromFragment, toFragment, BadLink } = await load("link.js");
const { rates, totals } = await load("exposition.js");
const { preferred } = await load("i18n.js");
const { stepOf, COUNT } = await load("tint.js");
const { unescaped } = await load("lists.js");
const { movedGap, placeOf } = await load("place.js");
const { Meter } = await load("meter.js");
const prose = await load("prose.js");
const { beginning, ending } = await load("excerpt.js");
const { fileOf, passagesOf } = await load("passages.js");
const { layout } = await load("layout.js");
const { search } = await load("search.js");
const { curl } = await load("snippets.js");
const { commandOf, tooltip } = await load("keys.js");
const { spansOf } = await load("tint.js");
const { Api, ApiError } = await load("api.js");
const { Runner } = await load("runner.js");

/** The API's arrays for tokens and their offsets, each with log-probability −1. */
function wire(list, offsets) {
  return {
    tokens: list,
    token_logprobs: list.map(() => -1),
    top_logprobs: list.map((token) => ({ [token]: -1, other: -2 })),
    text_offset: offsets,
  };
}

const spans = (reader) => reader.groups.map(({ start, end }) => [start, end]);

test("tokens: offsets in code points become offsets in UTF-16 units", () => {
  const reader = new tokens.TokenReader(10);
  reader.add("🦜a b", wire(["🦜", "a", " b"], [100, 101, 102]));
  assert.deepEqual(spans(reader), [[10, 12], [12, 13], [13, 15]]);
});

test("tokens: bytes are joined where they complete a character", () => {
  const reader = new tokens.TokenReader();
  reader.add("x 🦜y", wire(
    ["x", "bytes:\\x20\\xf0\\x9f", "bytes:\\xa6", "bytes:\\x9c", "y"], [0, 1, 2, 2, 3],
  ));
  assert.deepEqual(spans(reader), [[0, 1], [1, 4], [4, 5]]);
  assert.deepEqual(reader.groups[1].tokens.map((token) => token.text.length > 0), [true, true, true]);
  assert.equal(tokens.logprobOf(reader.groups[1]), -3);
});

test("tokens: a token that looks like bytes and is text stays text", () => {
  assert.equal(tokens.isPartial("bytes:"), false);
  assert.equal(tokens.isPartial("bytes:\\xzz"), false);
  assert.deepEqual([...tokens.bytesOf("é")], [0xc3, 0xa9]);
  assert.deepEqual([...tokens.bytesOf("bytes:\\xe2\\x80")], [0xe2, 0x80]);
});

test("tokens: any split into chunks gives the same groups", () => {
  const list = ["a", "bytes:\\xf0\\x9f", "bytes:\\xa6\\x9c", "\r", "\n", "z", "\r\n", "w"];
  const offsets = [0, 1, 1, 2, 3, 4, 5, 7];
  // The text lags behind its tokens, as it does if it may be the start of a stop string.
  const pieces = ["a", "", "🦜", "\r", "\n", "z", "\r\n", "w"];
  const whole = new tokens.TokenReader(3);
  whole.add(pieces.join(""), wire(list, offsets));
  assert.equal(whole.text, "a🦜\nz\nw");
  for (let lag = 0; lag < 4; lag += 1) {
    const reader = new tokens.TokenReader(3);
    let held = [];
    list.forEach((token, i) => {
      held.push(pieces[i]);
      const out = held.length > lag ? held.shift() : "";
      reader.add(out, wire([token], [offsets[i]]));
    });
    reader.add(held.join(""), null);
    assert.equal(reader.text, whole.text);
    assert.deepEqual(reader.groups, whole.groups);
  }
});

test("tokens: an end token takes no room", () => {
  const reader = new tokens.TokenReader();
  reader.add("ab", wire(["a", "b", "<|end|>"], [0, 1, 2]));
  assert.deepEqual(spans(reader), [[0, 1], [1, 2], [2, 2]]);
});

test("tokens: figures of a part", () => {
  const reader = new tokens.TokenReader();
  reader.add("abc", { ...wire(["a", "b", "c"], [0, 1, 2]), token_logprobs: [null, -1, -3] });
  const all = tokens.figures(reader.groups);
  assert.deepEqual([all.tokens, all.total, all.mean], [2, -4, -2]);
  assert.ok(Math.abs(all.perplexity - Math.exp(2)) < 1e-9);
  assert.equal(tokens.figures(reader.groups, 2, 3).total, -3);
  assert.equal(tokens.figures(reader.groups, 0, 1).mean, null);
});

test("tokens: entropy of a fair coin is one bit", () => {
  const half = Math.log(0.5);
  const group = { start: 0, end: 1, tokens: [{ text: "a", logprob: half, top: [["a", half], ["b", half]] }] };
  assert.ok(Math.abs(tokens.entropyOf(group) - 1) < 1e-9);
  group.tokens[0].top.pop();
  // All hidden tokens count as one outcome.
  assert.ok(Math.abs(tokens.entropyOf(group) - 1) < 1e-9);
});

test("tokens: spelled for people", () => {
  assert.equal(tokens.spelled(" a\n"), "·a↵");
  assert.equal(tokens.spelled("\u202e\x1b"), "‹202E›‹1B›");
  assert.equal(tokens.spelled("bytes:\\x20\\xf0\\x9f"), "·‹F0 9F›");
});

test("tokens: a common prefix never ends inside a character", () => {
  assert.equal(tokens.commonPrefix("a🦜", "a🦝"), 1);
  assert.equal(tokens.commonPrefix("abc", "abd"), 2);
  assert.equal(tokens.commonPrefix("a🦜", "a🦜"), 3);
  assert.equal(tokens.commonSuffix("abcab", "ab", 0), 2);
  assert.equal(tokens.commonSuffix("aaa", "aa", 2), 0);
  // Long texts are compared in parts, with the same result.
  const long = "ab\n".repeat(5000);
  for (const at of [0, 1, 4095, 4096, 4097, 9000, long.length - 1]) {
    const other = `${long.slice(0, at)}x${long.slice(at + 1)}`;
    assert.equal(tokens.commonPrefix(long, other), at);
    assert.equal(tokens.commonSuffix(long, other, at), long.length - at - 1);
    assert.equal(tokens.commonSuffix(long, long.slice(0, at) + long.slice(at + 1), at), long.length - at - 1);
  }
});

test("tint: steps go from what was expected to what was not", () => {
  assert.equal(stepOf(0), 0);
  assert.equal(stepOf(-9999), COUNT - 1);
  const steps = Array.from({ length: 100 }, (_, i) => stepOf(-i / 10));
  assert.deepEqual(steps, [...steps].sort((a, b) => a - b));
  assert.equal(new Set(steps).size, COUNT);
});

/** A tree: root → "once" (you) → " upon" (model) and " more" (model). */
function grove() {
  let tree = trees.emptyTree();
  tree = trees.add(tree, trees.makeNode("a", trees.ROOT, 0, "once"));
  const group = (start, text) => ({
    start, end: start + text.length, tokens: [{ text, logprob: -1, top: [[text, -1]] }],
  });
  for (const [id, text] of [["b", " upon"], ["c", " more"]]) {
    tree = trees.add(tree, trees.makeNode(id, "a", 4, text, { by: "model", groups: [group(4, text)] }));
  }
  return tree;
}

test("tree: texts and groups along a path", () => {
  const tree = grove();
  assert.equal(trees.textOf(tree, "b"), "once upon");
  assert.deepEqual(trees.groupsOf(tree, "b").map((g) => g.start), [4]);
  assert.deepEqual(trees.childrenOf(tree, "a").map((n) => n.id), ["b", "c"]);
});

test("tree: nothing that is there changes", () => {
  const tree = grove();
  const before = files.toJson(tree);
  trees.prune(tree, "a");
  trees.rename(tree, "b", "x");
  trees.write(tree, "b", "other", "n");
  trees.withScores(tree, "b", []);
  assert.equal(files.toJson(tree), before);
  assert.throws(() => {
    tree.get("a").text = "changed";
  });
});

test("tree: a branch inside a text keeps what is before it", () => {
  let tree = grove();
  tree = trees.add(tree, trees.makeNode("d", "b", 6, "nder", { by: "model" }));
  assert.equal(trees.textOf(tree, "d"), "once under");
  assert.deepEqual(trees.groupsOf(tree, "d"), []);
});

test("tree: writing makes one node however often it pauses", () => {
  let { tree, at } = trees.write(trees.emptyTree(), trees.ROOT, "on", "1");
  ({ tree, at } = trees.write(tree, at, "once", "2"));
  assert.deepEqual([...tree.keys()], [trees.ROOT, "2"]);
  assert.equal(trees.textOf(tree, at), "once");
  // An edit of a text of the model adds a branch.
  const grown = trees.write(grove(), "b", "once up!", "e");
  assert.equal(trees.textOf(grown.tree, "b"), "once upon");
  assert.equal(trees.textOf(grown.tree, "e"), "once up!");
  assert.equal(grown.tree.get("e").from, 7);
  assert.equal(trees.write(tree, at, "once", "3").at, at);
});

test("tree: pruning takes all that grew from it", () => {
  assert.deepEqual([...trees.prune(grove(), "a").keys()], [trees.ROOT]);
  assert.throws(() => trees.prune(grove(), trees.ROOT));
});

test("tree: there and back again", () => {
  const tree = trees.rename(grove(), "b", "  named ");
  const back = files.fromJson(files.toJson(tree));
  assert.deepEqual([...back], [...tree]);
  assert.equal(back.get("b").name, "named");
});

test("tree: a very deep one", () => {
  let tree = trees.emptyTree();
  let parent = trees.ROOT;
  for (let i = 0; i < 5000; i += 1) {
    tree.set(`n${i}`, trees.makeNode(`n${i}`, parent, i, "x"));
    parent = `n${i}`;
  }
  assert.equal(trees.textOf(tree, parent).length, 5000);
});

test("tree: merging keeps both", () => {
  const mine = grove();
  const again = trees.merge(mine, files.fromJson(files.toJson(mine)), () => "never");
  assert.deepEqual([...again.tree.keys()], [...mine.keys()]);
  let other = trees.emptyTree();
  other = trees.add(other, trees.makeNode("a", trees.ROOT, 0, "else"));
  other = trees.add(other, trees.makeNode("z", "a", 4, "where"));
  const { tree, became } = trees.merge(mine, other, () => "fresh");
  assert.equal(trees.textOf(tree, "a"), "once");
  assert.equal(trees.textOf(tree, became.get("z")), "elsewhere");
});

test("tree: hostile files say what is wrong", () => {
  const file = (change) => {
    const made = JSON.parse(files.toJson(grove()));
    change(made);
    return JSON.stringify(made);
  };
  const cases = [
    ["{", "import.notJson"],
    ["null", "import.notBranches"],
    ["[]", "import.notBranches"],
    [file((f) => { f.version = 2; }), "import.version"],
    [file((f) => { f.nodes = []; }), "import.noNodes"],
    [file((f) => { f.nodes = {}; }), "import.noNodes"],
    [file((f) => { f.nodes[0].text = "x"; }), "import.node", "id"],
    [file((f) => { f.nodes[1].parent = "nowhere"; }), "import.node", "parent"],
    [file((f) => { f.nodes[1].parent = null; }), "import.node", "parent"],
    [file((f) => { f.nodes[1].id = "q"; }), "import.node", "parent"],
    [file((f) => { f.nodes[2].id = "a"; }), "import.node", "id"],
    [file((f) => { f.nodes[2].from = 99; }), "import.node", "from"],
    [file((f) => { f.nodes[2].from = 0.5; }), "import.node", "from"],
    [file((f) => { f.nodes[2].text = 7; }), "import.node", "text"],
    [file((f) => { f.nodes[2].by = "<b>"; }), "import.node", "by"],
    [file((f) => { f.nodes[2].name = {}; }), "import.node", "name"],
    [file((f) => { f.nodes[2].finish = "x"; }), "import.node", "finish"],
    [file((f) => { f.nodes[2].groups[0].end = 99; }), "import.node", "groups"],
    [file((f) => { f.nodes[2].groups[0].start = 3; }), "import.node", "groups"],
    [file((f) => { f.nodes[2].groups[0].tokens[0].logprob = 5; }), "import.node", "groups"],
    [file((f) => { f.nodes[2].groups[0].tokens[0].top = [["a"]]; }), "import.node", "groups"],
    [file((f) => { f.nodes[2].groups[0].tokens = []; }), "import.node", "groups"],
    [file((f) => { f.nodes[2] = null; }), "import.node", "node"],
  ];
  for (const [json, key, field] of cases) {
    assert.throws(() => files.fromJson(json), (error) => {
      assert.ok(error instanceof files.BadTree, `${json}: ${error}`);
      assert.equal(error.key, key);
      if (field !== undefined) assert.equal(error.values.field, field);
      return true;
    });
  }
});

test("tree: short files of long texts are refused", () => {
  const nodes = JSON.parse(files.toJson(trees.emptyTree())).nodes;
  const [root] = nodes;
  for (let i = 0; i < 300; i += 1) {
    nodes.push({ ...root, id: `n${i}`, parent: i === 0 ? "root" : `n${i - 1}`, from: i * 1000, text: "x".repeat(1000) });
  }
  const json = JSON.stringify({ format: "afterword-branches", version: 1, nodes });
  assert.throws(() => files.fromJson(json), (error) => error.key === "import.tooLong");
});

test("diff: parts add up to the texts, and what is the same is the same", () => {
  const pairs = [
    ["the cat sat", "the dog sat"], ["", "new"], ["a b c d e", "a x c y e"], ["same", "same"],
    ["我在海边散步", "我在山上散步"], ["a\n\nb", "a b"], ["one two", "two one"], ["a\ud83e b", "a\ud83e c"],
  ];
  for (const [a, b] of pairs) {
    const [left, right] = compare(a, b);
    assert.equal(left.map((part) => part.text).join(""), a);
    assert.equal(right.map((part) => part.text).join(""), b);
    const same = (parts) => parts.filter((part) => part.same).map((part) => part.text).join("");
    assert.equal(same(left), same(right));
  }
  assert.deepEqual(compare("the cat sat", "the dog sat")[0], [
    { same: true, text: "the" }, { same: false, text: " cat" }, { same: true, text: " sat" },
  ]);
  assert.deepEqual(words("abc我们d"), ["abc", "我", "们", "d"]);
});

/** Returns small numbers below `most`, the same ones each time. */
function someNumbers(count, most, seed) {
  let state = seed + 1;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 16) % most;
  });
}

const sameWords = ([left]) => left.filter((part) => part.same).flatMap((part) => words(part.text)).length;

test("diff: no other way keeps more words", () => {
  for (let seed = 0; seed < 40; seed += 1) {
    const [a, b] = [0, 1].map((side) => someNumbers(5 + seed, 4, 2 * seed + side).map((n) => "abcd"[n]));
    const rows = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
    for (let i = 1; i <= a.length; i += 1) {
      for (let j = 1; j <= b.length; j += 1) {
        rows[i][j] = a[i - 1] === b[j - 1] ? rows[i - 1][j - 1] + 1 : Math.max(rows[i - 1][j], rows[i][j - 1]);
      }
    }
    const found = compare(` ${a.join(" ")}`, ` ${b.join(" ")}`);
    assert.equal(sameWords(found), rows[a.length][b.length]);
    assert.equal(found[1].map((part) => part.text).join(""), ` ${b.join(" ")}`);
  }
});

test("diff: what takes too many steps counts as different", () => {
  // Each of a thousand diagonals agrees nearly everywhere.
  const plain = Array.from({ length: 100_000 }, (_, i) => (i % 2 ? "a" : "b"));
  const changed = plain.map((word, i) => (i % 150 === 75 ? "c" : word));
  const [left, right] = compare(plain.join(" "), changed.join(" "));
  assert.equal(left.map((part) => part.text).join(""), plain.join(" "));
  assert.deepEqual(right.map((part) => part.same), [true, false, true]);
  const few = plain.map((word, i) => (i % 50_000 === 75 ? "c" : word));
  assert.equal(sameWords(compare(plain.join(" "), few.join(" "))), 99_998);
});

test("diff: texts that have nothing in common end all the same", () => {
  const text = (seed) => Array.from({ length: 4000 }, (_, i) => `${seed}${i}`).join(" ");
  const [left] = compare(text("a"), text("b"));
  assert.equal(left.map((part) => part.text).join(""), text("a"));
});

const bytesOf = async function* bytesOf(...parts) {
  for (const part of parts) yield new TextEncoder().encode(part);
};

test("sse: events whatever the parts", async () => {
  const whole = ': hi\n\ndata: {"a":"é"}\n\ndata: {"a":2}\n\ndata: [DONE]\n\n';
  for (const size of [1, 2, 3, 7, 1000]) {
    const bytes = new TextEncoder().encode(whole);
    const parts = async function* parts() {
      for (let i = 0; i < bytes.length; i += size) yield bytes.slice(i, i + size);
    };
    const got = [];
    for await (const event of events(parts())) got.push(event.a);
    assert.deepEqual(got, ["é", 2]);
  }
});

test("sse: an early end is no end", async () => {
  await assert.rejects(async () => {
    for await (const _ of events(bytesOf('data: {"a":1}\n\n'))) continue;
  }, Interrupted);
});

test("history: runs of typing are one step", () => {
  const history = new History();
  history.remember("", "typing 0");
  history.remember("a", "typing 0");
  history.remember("ab", "typing 1");
  history.remember("abc");
  assert.equal(history.undo("abcd"), "abc");
  assert.equal(history.undo("abc"), "ab");
  assert.equal(history.redo("ab"), "abc");
  assert.equal(history.undo("abc"), "ab");
  assert.equal(history.undo("ab"), "");
  assert.equal(history.undo(""), null);
  history.remember("x");
  assert.equal(history.redo("y"), null);
});

test("request: what is at its default is not sent", () => {
  const settings = { ...request.defaults(), model: "m" };
  assert.deepEqual(request.completionBody(settings, "p", ""), {
    model: "m", prompt: "p", temperature: 0.8, min_p: 0.05, max_tokens: 48, logprobs: 5,
  });
  settings.n = 2;
  settings.best_of = 2;
  assert.equal(request.completionBody(settings, "p", "").best_of, 2);
  assert.equal(request.canStream(request.completionBody(settings, "p", "")), true);
  settings.best_of = 3;
  assert.equal(request.canStream(request.completionBody(settings, "p", "")), false);
  assert.equal(request.completionBody(settings, "p", "s").suffix, "s");
  assert.equal("suffix" in request.completionBody(settings, "p", ""), false);
});

test("request: alternatives are lowered to the operator's limit, and shown so", () => {
  for (const most of [0, 2, 50]) {
    const settings = { ...request.defaults(), model: "m" };
    assert.equal(request.fit(settings, { max_logprobs: most }), most < 5);
    assert.equal(settings.logprobs, Math.min(5, most));
    assert.equal(request.completionBody(settings, "p", "").logprobs, Math.min(5, most));
    assert.equal(request.scoringBody(settings, "p").logprobs, Math.min(5, most));
  }
});

test("request: what cannot be sent is named", () => {
  const found = (changes, limits = {}) => request
    .problems({ ...request.defaults(), ...changes }, limits).map(({ name, key }) => `${name} ${key}`);
  assert.deepEqual(found({}), []);
  assert.deepEqual(found({ temperature: 5 }), ["temperature error.range"]);
  assert.deepEqual(found({ n: 200 }), ["n error.whole"]);
  assert.deepEqual(found({ n: 9 }, { max_n: 8 }), ["n error.whole"]);
  assert.deepEqual(found({ n: 3, best_of: 2 }), ["best_of error.bestOf"]);
  assert.deepEqual(found({ n: 3, best_of: 3 }), []);
  assert.deepEqual(found({ min_tokens: 9, max_tokens: 8 }), ["min_tokens error.minTokens"]);
  assert.deepEqual(found({ min_tokens: 9, max_tokens: null }), []);
});

test("request: settings from anywhere have their types", () => {
  const read = request.readSettings({
    temperature: "2", n: 1.5, seed: null, top_p: 0.5, stop: ["a", 7, ""], logit_bias: [{ id: -1 }],
    infill: 1, model: {}, x: 1, max_tokens: null,
  });
  assert.deepEqual(read, { ...request.defaults(), top_p: 0.5, stop: ["a"] });
  assert.deepEqual(request.readSettings("no"), request.defaults());
});

test("link: there and back, whatever the text", async () => {
  const settings = { ...request.defaults(), model: "m", seed: 0, stop: ["\n"] };
  for (const text of ["", "a", "🦜\u202e\u0000<script>", "x".repeat(100_000)]) {
    const fragment = await toFragment({ settings, text, suffix: "后" });
    assert.match(fragment, /^w=[\w-]+$/);
    assert.deepEqual(await fromFragment(`#${fragment}`), { settings, text, suffix: "后" });
  }
});

test("link: a link of the first release is read", async () => {
  const link = "#w=VY9LagQxDESvEmrtxQQSEnSJHCAE0x-5MWPLjiUPPQxz99DOZJFd1aPQQzdcQM8OymZRNgXdkMvKCYQMB-NcuU3WG4"
    + "-dlerrSHnavZUzi4Je3h1k0JnVfAkg6SkdZ3kFvTnUxsqysK8sU7Ir6OQQGn93luX6jx6K80g5yiF7pD_ZySGVrbYyK-jVQa1U0OfXw"
    + "NH8HCf97XGT0thzUVCYkrJDlBBTetT78d9uIHzIwk-9FoGD9hDiDgLLivsP";
  // The link says what it was sent with, whatever the defaults are now.
  const settings = { ...request.defaults(), model: "m", seed: 7, temperature: 1, min_p: 0 };
  assert.deepEqual(await fromFragment(link), { settings, text: "Once upon", suffix: "end" });
});

test("link: what is cut, altered or too long is refused", async () => {
  const fragment = await toFragment({ settings: request.defaults(), text: "hello there", suffix: "" });
  assert.equal(await fromFragment(""), null);
  assert.equal(await fromFragment("#other"), null);
  for (const bad of ["w=", "w=%%%", "w=AAAA", fragment.slice(0, -9)]) {
    await assert.rejects(fromFragment(`#${bad}`), BadLink);
  }
  const bomb = await toFragment({ settings: {}, text: "x".repeat(2_000_000), suffix: "" });
  assert.ok(bomb.length < 10_000);
  await assert.rejects(fromFragment(bomb), BadLink);
});

test("exposition: samples add up, and rates are differences", () => {
  const scrape = (n) => totals([
    "# HELP x", `afterword_engine_generated_tokens_total{model="a"} ${n}.0`,
    `afterword_engine_generated_tokens_total{model="b {}\\" 1"} ${n}.0`,
    `afterword_engine_cached_tokens_total{model="a"} ${3 * n}`,
    `afterword_engine_prefilled_tokens_total{model="a"} ${n}`,
    'afterword_engine_running_sequences{model="a"} 2.0', "broken line here", "y NaN",
  ].join("\n"));
  assert.equal(scrape(5).get("afterword_engine_generated_tokens_total"), 10);
  const found = rates(scrape(5), scrape(10), 2);
  assert.deepEqual([found.tokens_per_s, found.running, found.hits], [5, 2, 0.75]);
  assert.equal(rates(scrape(5), scrape(5), 1).hits, null);
  // A restarted server counts from 0.
  assert.equal(rates(scrape(10), scrape(1), 1).tokens_per_s, 0);
  const cells = (used, total) => totals(`afterword_engine_cells_used ${used}\nafterword_engine_cells_total ${total}`);
  assert.equal(rates(cells(0, 0), cells(3, 9), 1).cells, 3);
  // A gateway has no cells.
  assert.equal(rates(cells(0, 0), cells(0, 0), 1).cells, null);
});

test("language: chosen, offered, or English", () => {
  const languages = { en: {}, zh: {} };
  assert.equal(preferred("zh", ["en"], languages), "zh");
  assert.equal(preferred(null, ["fr-FR", "zh-TW", "en"], languages), "zh");
  assert.equal(preferred("xx", ["fr"], languages), "en");
  assert.equal(preferred("toString", [], languages), "en");
});

test("lists: escapes as in programs", () => {
  assert.equal(unescaped("a\\n\\t\\\\n"), "a\n\t\\n");
});

test("place: after the caret stays in its branch, or is written towards", () => {
  const page = { text: "one two three", gap: null, selection: [4, 7], infill: false };
  assert.deepEqual(placeOf(page), { start: 7, end: 13, fills: false });
  assert.deepEqual(placeOf({ ...page, infill: true }), { start: 4, end: 7, fills: true });
  // There is nothing to write towards at the end.
  assert.deepEqual(placeOf({ ...page, infill: true, selection: [13, 13] }), { start: 13, end: 13, fills: false });
  const gap = { start: 3, end: 3 };
  assert.deepEqual(placeOf({ ...page, gap }), { start: 3, end: 3, fills: true });
  assert.deepEqual(placeOf({ ...page, gap: { start: 8, end: 13 } }), { start: 8, end: 13, fills: false });
});

test("place: a gap follows edits around it", () => {
  const gap = { start: 4, end: 4 };
  assert.deepEqual(movedGap(gap, "one two", "one more two"), { start: 9, end: 9 });
  assert.deepEqual(movedGap(gap, "one two", "one twos"), gap);
  assert.deepEqual(movedGap(gap, "one two", "1 two"), { start: 2, end: 2 });
  assert.deepEqual(movedGap({ start: 1, end: 6 }, "one two", "o"), { start: 1, end: 1 });
  assert.deepEqual(movedGap({ start: 4, end: 7 }, "one two x", "one tw x"), { start: 4, end: 6 });
  assert.equal(movedGap(null, "a", "b"), null);
});

test("meter: the server's count, or what is seen", () => {
  const chunk = (index, text, usage = undefined, tokens = null) => ({
    choices: [{ index, text, logprobs: tokens && { tokens } }], usage,
  });
  const seen = new Meter(1000);
  assert.deepEqual([seen.tokens, seen.first_s, seen.tokens_per_s], [0, null, null]);
  seen.add(chunk(0, "a", undefined, ["a"]), 1500);
  seen.add(chunk(1, "b"), 1600);
  seen.add(chunk(0, "c", undefined, ["c", "d"]), 2500);
  assert.deepEqual([seen.tokens, seen.first_s, seen.tokens_per_s], [4, 0.5, 3]);
  const told = new Meter(0);
  told.add(chunk(0, "a", { completion_tokens: 2 }), 10);
  told.add(chunk(0, "b", { completion_tokens: 5 }), 20);
  assert.equal(told.tokens, 5);
  told.add({ choices: [], usage: { completion_tokens: 6 } }, 30);
  assert.equal(told.tokens, 6);
  // A search sends a whole text at once, and its usage counts all that it tried.
  const searched = new Meter(0);
  const infill = { found_by: "search" };
  searched.add({ ...chunk(0, "a", { completion_tokens: 1 }), infill }, 4000);
  searched.add({ ...chunk(0, "b", { completion_tokens: 2 }), infill }, 4001);
  searched.add({ choices: [], usage: { completion_tokens: 198 }, infill }, 4002);
  assert.deepEqual([searched.tokens, searched.first_s, searched.tokens_per_s], [2, 4, null]);
});

test("prose: programs are told from texts", () => {
  assert.equal(prose.isCode("def mean(numbers):\n    total = sum(numbers)\n    return total"), true);
  assert.equal(prose.isCode("const a = 1;\nfunction f() {\n  return a;\n}"), true);
  assert.equal(prose.isCode("Once upon a time.\n\nFor years nobody came.\nIf you ask me, no."), false);
  assert.equal(prose.isCode("1. A knife\n2. A rope\n3. A lamp"), false);
  assert.equal(prose.isCode("return"), false);
  assert.equal(prose.isCode(""), false);
});

test("prose: Markdown shows the text as it is, the reader's words in bold", () => {
  const text = prose.markdown("A *title*", [
    { by: "you", text: "1. one *star*\n\n" }, { by: "model", text: " # not a heading\n<b>" }, { by: "you", text: " " },
  ]);
  assert.equal(text, "# A \\*title\\*\n\n**1\\. one \\*star\\***\n\n \\# not a heading\n\\<b\\>\n");
});

/** Root → "one two three" (you) → at 4 " four" (model), at 13 " more" (model) → at 18 "!" (you). */
function forked() {
  let tree = trees.emptyTree();
  tree = trees.add(tree, trees.makeNode("a", trees.ROOT, 0, "one two three"));
  tree = trees.add(tree, trees.makeNode("b", "a", 4, "four", { by: "model" }));
  tree = trees.add(tree, trees.makeNode("c", "a", 13, " more", { by: "model", tail: 2, name: "Other" }));
  return trees.add(tree, trees.makeNode("d", "c", 18, "!"));
}

test("tree: a text hangs on the node whose text it keeps", () => {
  const tree = forked();
  assert.equal(trees.ownerOf(tree, "d", 19), "d");
  assert.equal(trees.ownerOf(tree, "d", 18), "c");
  assert.equal(trees.ownerOf(tree, "d", 13), "a");
  assert.equal(trees.ownerOf(tree, "d", 5), "a");
  assert.equal(trees.ownerOf(tree, "d", 0), trees.ROOT);
  // Scores of a whole text are not left behind.
  assert.equal(trees.ownerOf(trees.withScores(tree, "d", []), "d", 5), "d");
});

test("tree: the fork before the caret, from every side", () => {
  const tree = forked();
  assert.deepEqual(trees.forkBefore(tree, "a", 13), { from: 4, ids: ["a", "b"], index: 0 });
  assert.deepEqual(trees.forkBefore(tree, "b", 8), { from: 4, ids: ["a", "b"], index: 1 });
  assert.deepEqual(trees.forkBefore(tree, "d", 19), { from: 4, ids: ["a", "b"], index: 0 });
  assert.equal(trees.forkBefore(tree, "d", 3), null);
  const more = trees.add(tree, trees.makeNode("e", "a", 13, " less", { by: "model" }));
  assert.deepEqual(trees.forkBefore(more, "d", 19), { from: 13, ids: ["c", "e"], index: 0 });
  assert.deepEqual(trees.forkBefore(more, "e", 18), { from: 13, ids: ["c", "e"], index: 1 });
  assert.deepEqual(trees.forkBefore(more, "e", 12), { from: 4, ids: ["a", "b"], index: 0 });
});

test("tree: a file of the first release is read", () => {
  const file = JSON.parse(files.toJson(grove()));
  for (const node of file.nodes) for (const field of ["lead", "tail", "mark"]) delete node[field];
  assert.deepEqual([...files.fromJson(JSON.stringify(file))], [...grove()]);
  file.nodes[2].tail = 99;
  assert.throws(() => files.fromJson(JSON.stringify(file)), (error) => error.values.field === "tail");
});

test("passages: who wrote what, and files of it", () => {
  const tree = forked();
  assert.deepEqual(passagesOf(tree, "d"), [
    { by: "you", text: "one two three" }, { by: "model", text: " mo" }, { by: "you", text: "re!" },
  ]);
  assert.deepEqual(passagesOf(tree, "b"), [{ by: "you", text: "one " }, { by: "model", text: "four" }]);
  const of = (format) => fileOf(format, { tree, at: "d", title: "On / two: 三" });
  assert.deepEqual(of("text"), { name: "On-two-三.txt", type: "text/plain", text: "one two three more!" });
  assert.match(of("markdown").text, /^# On \/ two: 三\n\n\*\*one two three\*\* mo\*\*re!\*\*\n$/);
  assert.deepEqual(JSON.parse(of("path").text).steps.map(({ by, from }) => [by, from]), [["you", 0], ["model", 13], ["you", 18]]);
});

test("map: leaves have rows of their own, parents stand in the middle", () => {
  const places = layout(forked());
  assert.deepEqual(Object.fromEntries(places), {
    b: { column: 2, row: 0 }, d: { column: 3, row: 1 }, c: { column: 2, row: 1 },
    a: { column: 1, row: 0.5 }, root: { column: 0, row: 0.5 },
  });
});

test("search: in texts and names, across where a node begins", () => {
  const tree = forked();
  assert.deepEqual(search(tree, "FOUR").map(({ id, end, before }) => [id, end, before]), [["b", 8, "one "]]);
  assert.deepEqual(search(tree, "e mo").map(({ id, end }) => [id, end]), [["c", 16]]);
  assert.deepEqual(search(tree, "other").map(({ id, found }) => [id, found]), [["c", ""]]);
  assert.deepEqual(search(tree, "nowhere"), []);
});

test("search: a letter that is longer in lower case shifts nothing", () => {
  const tree = trees.add(
    trees.emptyTree(), trees.makeNode("a", trees.ROOT, 0, "\u0130\u0130 then"),
  );
  assert.deepEqual(search(tree, "THEN").map(({ end, found }) => [end, found]), [[7, "then"]]);
  assert.deepEqual(search(tree, "\u0130").map(({ end, found }) => [end, found]), [[1, "\u0130"]]);
});

test("snippets: an address in IPv6 is one word of every shell", () => {
  const call = (base) => curl({ base, body: {}, keyed: false }).split(" \\\n")[0];
  assert.equal(call("http://[::1]:8000"), "curl 'http://[::1]:8000/v1/completions'");
  assert.equal(call("https://h.org:1"), "curl https://h.org:1/v1/completions");
});

test("keys: one command for each", () => {
  const press = (key, more = {}) => commandOf({
    key, code: "", ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...more,
  })?.name;
  assert.equal(press("Enter", { ctrlKey: true }), "continue");
  assert.equal(press("Enter", { metaKey: true, shiftKey: true }), "several");
  assert.equal(press("Enter"), undefined);
  assert.equal(press("®", { code: "KeyR", altKey: true }), "regenerate");
  assert.equal(press("r", { code: "KeyR", ctrlKey: true }), undefined);
  assert.equal(press("?", { shiftKey: true }), "keys");
  assert.equal(press("Z", { ctrlKey: true, shiftKey: true }), "redo");
  assert.match(tooltip("Stop", "stop"), /^Stop \(Esc\)$/);
  assert.equal(tooltip("Words", undefined), "Words");
});

test("tint: neighbours of one step stay apart, and white space has no tint", () => {
  const text = "a bc d\n\n";
  const group = (start, end, logprob) => ({ start, end, tokens: [{ text: "", logprob, top: [] }] });
  const groups = [group(0, 1, null), group(1, 3, -1), group(3, 4, -1), group(4, 6, -1), group(6, 8, -3)];
  const spans = spansOf(groups, 0, groups.length, text);
  assert.deepEqual(spans.map(({ start, end }) => text.slice(start, end)), ["b", "c", "d", "\n\n"]);
  assert.deepEqual(spans.map(({ variant }) => variant), [0, 1, 0, 0]);
});

const said = (...passages) => template.messagesOf(passages.map(([by, text]) => ({ by, text })))
  .map(({ role, content, at }) => [role, content, at]);

test("template: who wrote a passage says whose message it is", () => {
  assert.deepEqual(said(), [["user", "", 0]]);
  assert.deepEqual(said(["you", "  Ask\n\n"]), [["user", "Ask", 2]]);
  assert.deepEqual(
    said(["you", "Ask\n\n"], ["model", "It is"], ["model", " so.\n"], ["you", "\nMore? "], ["model", " Yes"]),
    [["user", "Ask", 0], ["assistant", "It is so.\n", 5], ["user", "More?", 16], ["assistant", " Yes", 22]],
  );
  // A text that the model began alone.
  assert.deepEqual(said(["model", "It is"]), [["user", "", 0], ["assistant", "It is", 0]]);
});

test("template: words in the last line of an answer are the answer's", () => {
  const asked = ["you", "A\n\n"];
  assert.deepEqual(said(asked, ["model", "b"], ["you", " c"]), [["user", "A", 0], ["assistant", "b c", 3]]);
  assert.deepEqual(said(asked, ["model", "b"], ["you", " c"], ["model", " d"]).at(-1), ["assistant", "b c d", 3]);
  assert.deepEqual(
    said(asked, ["model", "b"], ["you", " c\n\nE"]),
    [["user", "A", 0], ["assistant", "b c", 3], ["user", "E", 8]],
  );
  assert.deepEqual(said(asked, ["model", "b\n"], ["you", "E"]).at(-1), ["user", "E", 5]);
  // White space says nothing.
  assert.deepEqual(said(asked, ["model", "b"], ["you", "\n\n "]).at(-1), ["assistant", "b\n\n ", 3]);
  assert.equal(template.asks(template.messagesOf([])), true);
  assert.equal(template.asks(template.messagesOf([{ by: "model", text: "b" }])), false);
});

test("template: parts of a prompt have their places in the text", () => {
  const messages = template.messagesOf([{ by: "you", text: "🦜a\n\n" }, { by: "model", text: "b🦜" }]);
  const prompt = "<🦜><🦜a><b🦜";
  const parts = template.partsOf({ prompt, offsets: [4, 8] }, messages);
  assert.deepEqual(parts.map(({ text, at }) => [text, at]), [
    ["<🦜><", null], ["🦜a", 0], ["><", null], ["b🦜", 5],
  ]);
  assert.equal(parts.map(({ text }) => text).join(""), prompt);
  for (const { start, text } of parts) assert.equal(prompt.slice(start, start + text.length), text);
  const group = (start, end) => ({ start, end, tokens: [] });
  // One token before, one inside each, one that reaches out, one behind.
  const groups = [group(0, 1), group(5, 7), group(7, 9), group(10, 11), group(11, 13)];
  const found = template.groupsInText(groups, parts);
  assert.deepEqual(found.map(({ start, end }) => [start, end]), [[0, 2], [5, 6], [6, 8]]);
  // A text that the template changes has no place.
  const changed = template.partsOf({ prompt: "xAy", offsets: [null, null] }, messages);
  assert.deepEqual(changed.map(({ text, at }) => [text, at]), [["xAy", null]]);
});

test("template: the prompt of a request is rendered, and its ends are sent", async () => {
  const asked = [];
  const api = {
    json: async (...given) => {
      asked.push(given);
      return { prompt: "<a>", offsets: [1], stop_token_ids: asked.length > 1 ? [7] : [] };
    },
  };
  const body = { model: "m", prompt: "a\ud800", n: 2 };
  assert.deepEqual(await template.bodyOf(api, { body, messages: null }), body);
  const messages = template.messagesOf([{ by: "you", text: "a\ud800" }]);
  assert.deepEqual(await template.bodyOf(api, { body, messages }), { ...body, prompt: "<a>" });
  assert.deepEqual(await template.bodyOf(api, { body, messages }), { ...body, prompt: "<a>", stop_token_ids: [7] });
  const [path, sent] = asked[0];
  assert.equal(path, "/apply-template");
  assert.deepEqual(sent, { model: "m", messages: [{ role: "user", content: "a\ufffd" }] });
});

test("passages: a blank line before an answer is the page's", () => {
  const group = (start, end) => ({ start, end, tokens: [{ text: "x", logprob: -1, top: [] }] });
  const texts = (node) => passagesOf(trees.add(trees.add(trees.emptyTree(), trees.makeNode("a", "root", 0, "Ask")), node), "b")
    .map(({ by, text }) => [by, text]);
  const model = { by: "model", lead: 2 };
  const answer = trees.makeNode("b", "a", 3, "\n\nYes", { ...model, groups: [group(5, 8)] });
  assert.deepEqual(texts(answer), [["you", "Ask\n\n"], ["model", "Yes"]]);
  // Without log-probabilities there are no tokens; a token that the reader took is the model's.
  assert.deepEqual(texts(trees.makeNode("b", "a", 3, "\n\nYes", model)), [["you", "Ask\n\n"], ["model", "Yes"]]);
  const taken = trees.makeNode("b", "a", 3, "\n\nYes", { ...model, groups: [group(3, 5), group(5, 8)] });
  assert.deepEqual(texts(taken), [["you", "Ask"], ["model", "\n\nYes"]]);
});

/** An API whose server refuses a key, if it gets one that a header can carry. */
function serving(answer) {
  const calls = [];
  globalThis.fetch = async (path, { headers, signal }) => {
    // As in browsers: raises TypeError for a value that no header takes.
    calls.push({ headers: new Headers(headers), signal });
    return answer();
  };
  return calls;
}

test("api: a key that no header takes is refused by the server, and the server is not away", async () => {
  const { fetch } = globalThis;
  const calls = serving(() => Response.json({ error: { message: "no such key" } }, { status: 401 }));
  const api = new Api({ get: () => "sk-af-\u2026\u200b\n12" }, async () => false);
  await assert.rejects(() => api.json("/v1/models"), (error) => error instanceof ApiError && error.status === 401);
  assert.equal(calls[0].headers.get("authorization"), "Bearer sk-af-???12");
  globalThis.fetch = fetch;
});

test("runner: an answer that the page cannot use is not waited for", async () => {
  const { fetch } = globalThis;
  const chunk = JSON.stringify({ choices: [{ index: 0, text: "a", finish_reason: null }] });
  const calls = serving(() => new Response(`data: ${chunk}\n\n`));
  const runner = new Runner(new Api({ get: () => null }, async () => false));
  const use = () => {
    throw new RangeError("the page is at fault");
  };
  await assert.rejects(() => runner.write({ body: { model: "m", prompt: "p" }, messages: null }, use), RangeError);
  assert.equal(calls[0].signal.aborted, true);
  globalThis.fetch = fetch;
});

test("parts of texts cut no character in two", async () => {
  const { firstWords } = await load("keeper.js");
  for (const before of ["", "a"]) {
    const text = before + "🦜".repeat(300);
    for (const most of [0, 1, 2, 3, 60, 601]) {
      const [first, last] = [beginning(text, most), ending(text, most)];
      for (const part of [first, last]) {
        assert.ok(part.isWellFormed() && part.length <= most && part.length >= Math.min(most - 1, text.length));
      }
      assert.ok(text.startsWith(first) && text.endsWith(last));
    }
    assert.ok(firstWords(text).isWellFormed());
    const letters = before + "\u{20000}".repeat(300);
    const tree = trees.add(trees.emptyTree(), trees.makeNode("n", trees.ROOT, 0, `${text}x${text}`));
    assert.ok(fileOf("text", { tree, at: "n", title: letters }).name.isWellFormed());
    assert.ok(trees.rename(tree, "n", letters).get("n").name.isWellFormed());
    const [hit] = search(tree, "x");
    assert.ok(hit.before.isWellFormed() && hit.after.isWellFormed());
  }
});

test("api: an error answer of a proxy in any format is an error", async () => {
  const real = globalThis.fetch;
  for (const body of ["null", "[]", "<html>", '"x"', '{"error": null}', '{"error": {"message": 1}}']) {
    globalThis.fetch = async () => new Response(body, { status: 502 });
    const api = new Api({ get: () => null }, async () => false);
    await assert.rejects(api.json("/v1/models"), (error) => error instanceof ApiError && error.message === "HTTP 502");
  }
  globalThis.fetch = real;
});

test("link: line ends are those of a text area", async () => {
  const fragment = await toFragment({ settings: request.defaults(), text: "a\r\nb\r", suffix: "\rc\n" });
  const { text, suffix } = await fromFragment(`#${fragment}`);
  assert.deepEqual([text, suffix], ["a\nb\n", "\nc\n"]);
});
