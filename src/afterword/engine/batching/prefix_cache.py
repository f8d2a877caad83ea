"""A radix tree over token ids: the holders of each prefix's KV, and the scores of its tokens.

Each cache scope has a tree of its own, so that nobody learns what another scope has computed.
The tree knows nothing of memory: a holder is a name, and its ``computed`` is how many tokens it
has KV of. Scores outlive the KV of their prefix, up to a budget in bytes. The budget counts the
nodes that scores need, too.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

import msgspec

from afterword.engine.arrays import NO_IDS, TokenIds
from afterword.engine.batching.scores import Scores, ScoreSpan
from afterword.engine.batching.slots import Holder, Source

_KEPT_SHARE = 0.9
"""Share of the budget that eviction leaves, so that scores are not evicted one by one."""
EDGE_BYTES = 1024
"""What a node with scores takes at most besides its tokens and scores.

An infill scores dozens of places a few tokens apart. Their nodes are most of what they take.
"""


class Node:
    """Tokens at positions ``start`` to ``end`` that follow those of ``parent``.

    Invariants: no two children begin with the same token; ``holders`` are those whose tokens
    go through the whole edge, and the parent's include them; ``scores`` cover the first positions
    of the edge.
    """

    __slots__ = ("children", "end", "holders", "last_used", "parent", "scores", "start", "tokens")

    def __init__(self, tokens: TokenIds, parent: Node | None) -> None:
        self.tokens = tokens
        self.parent = parent
        self.start: int = 0 if parent is None else parent.end
        self.end: int = self.start + len(tokens)
        self.children: dict[int, Node] = {}
        self.holders: dict[Holder, None] = {}
        self.scores: ScoreSpan | None = None
        self.last_used = 0


class Root(Node):
    """The start of a scope's tree: it has no tokens and no parent."""

    __slots__ = ("scope",)

    def __init__(self, scope: str) -> None:
        super().__init__(NO_IDS, None)
        self.scope = scope


class Match(msgspec.Struct, frozen=True):
    """The longest prefix of some ids in the tree: ``tokens`` ids, on ``nodes`` from the root down.

    The last node may match in part only.
    """

    nodes: list[Node]
    tokens: int


class PrefixCache:
    """All prefixes that have a holder or recent scores, in one tree for each cache scope."""

    def __init__(self, score_budget_bytes: int) -> None:
        # A scope is there while its tree has nodes.
        self._roots: dict[str, Root] = {}
        self._score_budget_bytes = score_budget_bytes
        # For each holder the node that ends where its tokens end; holders of no token are left out.
        self._ends: dict[Holder, Node] = {}
        self._clock = 0
        self.score_bytes = 0

    def match(self, ids: TokenIds, scope: str = "") -> Match:
        """Returns the longest prefix of ``ids`` in the tree of a scope."""
        root = self._roots.get(scope)
        return Match([], 0) if root is None else _match(root, ids)

    @staticmethod
    def best(match: Match, usable: Callable[[Holder, int], int]) -> Source | None:
        """Returns the holder with the most usable tokens of a match; None if there is none.

        ``usable(holder, depth)`` returns how many of the ``depth`` tokens that a holder shares
        with the match can be reused, at most ``depth``. On a tie an idle holder wins, because it
        can be continued in place; of those the one that has held the tokens longest.
        """
        best: Source | None = None
        for node in reversed(match.nodes):
            depth = min(node.end, match.tokens)
            # Holders of a node hold its ancestors too, so none above can be better.
            if best is not None and best.tokens >= depth:
                break
            for holder in node.holders:
                found = Source(holder, usable(holder, depth))
                if best is None or _rank(found) > _rank(best):
                    best = found
                if found.tokens == depth and holder.sequence is None:
                    break  # thousands may hold the beginning that all prompts have
        return best if best is not None and best.tokens else None

    @staticmethod
    def read(match: Match, scores: Scores) -> None:
        """Copy the kept scores of the matched tokens into ``scores``, up to the first gap."""
        for node in match.nodes:
            kept = node.scores
            if kept is not None and kept.k >= scores.k:
                scores.take(kept.part(0, match.tokens - node.start), node.start)

    def hold(self, holder: Holder, ids: TokenIds) -> None:
        """Record that ``holder`` has exactly these tokens of its scope, which may be none."""
        old = self._ends.pop(holder, None)
        new = self._insert(ids, holder.scope) if len(ids) else None
        if new is not None:
            self._ends[holder] = new
        path = dict.fromkeys(_upwards(new))
        for node in path:
            node.holders[holder] = None
        self._touch(path)
        self._leave(old, holder, but=path)
        # Two halves of an edge take more than the whole.
        self._make_room()

    def held_tokens(self, holder: Holder) -> int:
        """Returns how many tokens ``hold`` recorded for a holder."""
        node = self._ends.get(holder)
        return 0 if node is None else node.end

    def keep(self, ids: TokenIds, scores: Scores, scope: str = "") -> None:
        """Keep the known scores of a prompt for later prompts of the scope with a common prefix."""
        path = list(_upwards(self._insert(ids, scope)))
        for node in path:
            if node.start < scores.known:
                self._add(node, scores)
            self._prune(node)
        self._touch(path)
        self._make_room()

    def touch(self, match: Match) -> None:
        """Mark the matched nodes as used most recently, for the order of eviction."""
        self._touch(match.nodes)

    def _touch(self, nodes: Iterable[Node]) -> None:
        self._clock += 1
        for node in nodes:
            node.last_used = self._clock

    def _add(self, node: Node, scores: Scores) -> None:
        """Keep the scores of an edge if they cover more positions or have more top ids."""
        entries = scores.part(node.start, min(node.end, scores.known))
        kept = node.scores
        if kept is not None and (len(entries), entries.k) <= (len(kept), kept.k):
            return
        self.score_bytes -= _score_bytes(node)
        node.scores = entries.copy()
        self.score_bytes += _score_bytes(node)

    def _insert(self, ids: TokenIds, scope: str) -> Node:
        """Returns the node that ends where ``ids`` end, at least one, and makes it if needed."""
        root = self._roots.get(scope)
        if root is None:
            root = self._roots[scope] = Root(scope)
        match = _match(root, ids)
        node = match.nodes[-1] if match.nodes else root
        if match.tokens < node.end:
            node = self._split(node, match.tokens - node.start)
        if match.tokens < len(ids):
            child = Node(ids[match.tokens :].copy(), node)
            node.children[int(child.tokens[0])] = child
            node = child
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut an edge in two and return the new upper half; ``node`` keeps its end."""
        parent = node.parent
        if parent is None:
            raise AssertionError("the root has no edge to cut")
        self.score_bytes -= _score_bytes(node)
        upper = Node(node.tokens[:at].copy(), parent)
        parent.children[int(upper.tokens[0])] = upper
        upper.holders = dict(node.holders)
        upper.last_used = node.last_used
        node.parent, node.tokens, node.start = upper, node.tokens[at:].copy(), upper.end
        upper.children[int(node.tokens[0])] = node
        kept = node.scores
        if kept is not None:
            upper.scores = kept.part(0, at).copy()
            node.scores = kept.part(at, len(kept)).copy() if len(kept) > at else None
        self.score_bytes += _score_bytes(upper) + _score_bytes(node)
        # The lower half goes if the scores of the upper half were its only content.
        self._prune(node)
        return upper

    def _leave(self, leaf: Node | None, holder: Holder, *, but: Container[Node]) -> None:
        for node in list(_upwards(leaf)):
            if node in but:
                break
            del node.holders[holder]
            self._prune(node)

    def _prune(self, node: Node) -> None:
        """Remove a node without children, holders and scores, and a tree without nodes."""
        parent = node.parent
        if parent is None or node.children or node.holders or node.scores:
            return
        del parent.children[int(node.tokens[0])]
        if isinstance(parent, Root) and not parent.children:
            del self._roots[parent.scope]

    def _make_room(self) -> None:
        """Drop scores over the budget: least recently used first, then deepest first."""
        if self.score_bytes <= self._score_budget_bytes:
            return
        scored = [node for node in self._nodes() if node.scores is not None]
        scored.sort(key=lambda node: (node.last_used, -node.start))
        for node in scored:
            if self.score_bytes <= _KEPT_SHARE * self._score_budget_bytes:
                return
            self.score_bytes -= _score_bytes(node)
            node.scores = None
            for above in list(_upwards(node)):
                self._prune(above)

    def _nodes(self) -> Iterator[Node]:
        rest = [node for root in self._roots.values() for node in root.children.values()]
        while rest:
            node = rest.pop()
            yield node
            rest.extend(node.children.values())

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        size_bytes = 0
        for scope, root in self._roots.items():
            if root.scope != scope or not root.children:
                raise AssertionError("a scope without nodes is kept")
        for node in self._nodes():
            parent = node.parent
            sound = (
                parent is not None
                and parent.children.get(int(node.tokens[0])) is node
                and (node.start, node.end) == (parent.end, parent.end + len(node.tokens))
                and (isinstance(parent, Root) or node.holders.keys() <= parent.holders.keys())
                and bool(node.children or node.holders or node.scores)
                and all(node in _upwards(self._ends.get(holder)) for holder in node.holders)
                and all(holder.scope == _scope_of(node) for holder in node.holders)
            )
            if not sound:
                raise AssertionError(f"node at {node.start} is out of order")
            size_bytes += _score_bytes(node)
            if node.scores is not None and len(node.scores) > len(node.tokens):
                raise AssertionError(f"node at {node.start} has more scores than tokens")
        if size_bytes != self.score_bytes:
            raise AssertionError(f"scores take {size_bytes} bytes, {self.score_bytes} are counted")


def _score_bytes(node: Node) -> int:
    """Returns the bytes of a node with its scores; 0 without scores."""
    if node.scores is None:
        return 0
    return EDGE_BYTES + node.tokens.nbytes + node.scores.size_bytes


def _match(root: Root, ids: TokenIds) -> Match:
    nodes: list[Node] = []
    node: Node = root
    at = 0
    while at < len(ids):
        child = node.children.get(int(ids[at]))
        if child is None:
            break
        nodes.append(child)
        common = common_prefix(child.tokens, ids[at:])
        at += common
        if common < len(child.tokens):
            break
        node = child
    return Match(nodes, at)


def common_prefix(a: TokenIds, b: TokenIds) -> int:
    """Returns the length of the longest common prefix."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n


def _scope_of(node: Node) -> str | None:
    """Returns the scope of a node's tree; None if the tree does not begin with a root."""
    while node.parent is not None:
        node = node.parent
    return node.scope if isinstance(node, Root) else None


def _rank(source: Source) -> tuple[int, bool, int]:
    return source.tokens, source.holder.sequence is None, -source.holder.index


def _upwards(node: Node | None) -> Iterator[Node]:
    """Yields a node and its ancestors, without the root."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent
