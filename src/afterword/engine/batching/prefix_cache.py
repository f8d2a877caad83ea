"""A radix tree over token ids: who holds the KV of a prefix, and what scoring found there.

It knows nothing of memory: a holder is a name, and its ``computed`` says of how many tokens it has
KV. Scores outlive the KV of their prefix, up to a budget in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

import msgspec
import numpy as np

from afterword.engine.batching.scores import Scores, ScoreSpan
from afterword.engine.batching.sequence import TokenIds
from afterword.engine.batching.slots import Holder, Source

_KEPT_SHARE = 0.9
"""What is left of the budget once scores had to go, so that they do not go one by one."""


class Node:
    """Tokens at positions ``start`` to ``end`` that follow those of ``parent``.

    Invariants: no two children begin with the same token; ``holders`` are those whose tokens
    go through the whole edge, and the parent's include them; ``scores`` are of the first positions
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


class Match(msgspec.Struct, frozen=True):
    """How far the tree goes along with some ids: nodes from the root on, the last one in part."""

    nodes: list[Node]
    tokens: int


class PrefixCache:
    """All prefixes that somebody holds or that were scored lately."""

    def __init__(self, score_budget_bytes: int) -> None:
        self._root = Node(np.empty(0, np.int32), None)
        self._score_budget_bytes = score_budget_bytes
        # The node that ends where the tokens of a holder end; holders of nothing are left out.
        self._ends: dict[Holder, Node] = {}
        self._clock = 0
        self.score_bytes = 0

    def match(self, ids: TokenIds) -> Match:
        """The longest prefix of ``ids`` in the tree."""
        nodes: list[Node] = []
        node, at = self._root, 0
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

    @staticmethod
    def best(match: Match, usable: Callable[[Holder, int], int]) -> Source | None:
        """The holder of most of what matched.

        ``usable`` says how many tokens of a holder serve that goes along with the match for so
        many; no more than these. On a tie it is an idle one, which may be continued in place, then
        the lowest index.
        """
        best: Source | None = None
        for node in reversed(match.nodes):
            depth = min(node.end, match.tokens)
            # Whoever holds a node holds those above it: no better one can follow.
            if best is not None and best.tokens >= depth:
                break
            for holder in node.holders:
                found = Source(holder, usable(holder, depth))
                if best is None or _rank(found) > _rank(best):
                    best = found
        return best if best is not None and best.tokens else None

    @staticmethod
    def read(match: Match, scores: Scores) -> None:
        """Give ``scores`` what is known of the tokens that matched."""
        for node in match.nodes:
            kept = node.scores
            if kept is None or kept.k < scores.k:
                return
            usable = min(len(kept), match.tokens - node.start)
            scores.take(kept.part(0, usable), node.start)
            if usable < len(node.tokens):
                return

    def hold(self, holder: Holder, ids: TokenIds) -> None:
        """Say that ``holder`` has these tokens, which may be none, and no others."""
        old, new = self._ends.pop(holder, None), self._insert(ids)
        if new is not self._root:
            self._ends[holder] = new
        path = dict.fromkeys(_upwards(new))
        for node in path:
            node.holders[holder] = None
        self._touch(path)
        self._leave(old, holder, but=path)

    def held_tokens(self, holder: Holder) -> int:
        """How many tokens ``hold`` was told of a holder."""
        node = self._ends.get(holder)
        return 0 if node is None else node.end

    def keep(self, ids: TokenIds, scores: Scores) -> None:
        """Keep what is known of a prompt for others that begin alike."""
        path = list(_upwards(self._insert(ids)))
        for node in path:
            if node.start < scores.known:
                self._add(node, scores)
            self._prune(node)
        self._touch(path)
        self._make_room()

    def touch(self, match: Match) -> None:
        """Mark what matched as used just now, for the order in which scores go."""
        self._touch(match.nodes)

    def _touch(self, nodes: Iterable[Node]) -> None:
        self._clock += 1
        for node in nodes:
            node.last_used = self._clock

    def _add(self, node: Node, scores: Scores) -> None:
        """Keep the scores of an edge if they are more than what is there, or have more top ids."""
        entries = scores.part(node.start, min(node.end, scores.known))
        kept = node.scores
        if kept is not None:
            if (len(entries), entries.k) <= (len(kept), kept.k):
                return
            self.score_bytes -= kept.size_bytes
        node.scores = entries.copy()
        self.score_bytes += entries.size_bytes

    def _insert(self, ids: TokenIds) -> Node:
        """The node that ends where ``ids`` end, made as needed."""
        match = self.match(ids)
        node = match.nodes[-1] if match.nodes else self._root
        if match.tokens < node.end:
            node = self._split(node, match.tokens - node.start)
        if match.tokens < len(ids):
            child = Node(ids[match.tokens :].copy(), node)
            node.children[int(child.tokens[0])] = child
            node = child
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut an edge in two; the upper half is new, so that whoever names ``node`` ends there."""
        parent = node.parent
        if parent is None:
            raise AssertionError("the root has no edge to cut")
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
        # What follows may have stood there for the scores before it alone.
        self._prune(node)
        return upper

    def _leave(self, leaf: Node | None, holder: Holder, *, but: Container[Node]) -> None:
        for node in list(_upwards(leaf)):
            if node in but:
                break
            del node.holders[holder]
            self._prune(node)

    def _prune(self, node: Node) -> None:
        """Take out a node that serves nobody."""
        if node.parent is not None and not (node.children or node.holders or node.scores):
            del node.parent.children[int(node.tokens[0])]

    def _make_room(self) -> None:
        """Drop scores over the budget: the least recently used first, ends before beginnings."""
        if self.score_bytes <= self._score_budget_bytes:
            return
        scored = [node for node in self._nodes() if node.scores is not None]
        scored.sort(key=lambda node: (node.last_used, -node.start))
        for node in scored:
            if self.score_bytes <= _KEPT_SHARE * self._score_budget_bytes:
                return
            self.score_bytes -= node.scores.size_bytes if node.scores is not None else 0
            node.scores = None
            for above in list(_upwards(node)):
                self._prune(above)

    def _nodes(self) -> Iterator[Node]:
        rest = list(self._root.children.values())
        while rest:
            node = rest.pop()
            yield node
            rest.extend(node.children.values())

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        size_bytes = 0
        for node in self._nodes():
            parent = node.parent
            sound = (
                parent is not None
                and parent.children.get(int(node.tokens[0])) is node
                and (node.start, node.end) == (parent.end, parent.end + len(node.tokens))
                and (parent is self._root or node.holders.keys() <= parent.holders.keys())
                and bool(node.children or node.holders or node.scores)
                and all(node in _upwards(self._ends.get(holder)) for holder in node.holders)
            )
            if not sound:
                raise AssertionError(f"node at {node.start} is out of order")
            if node.scores is not None:
                size_bytes += node.scores.size_bytes
                if len(node.scores) > len(node.tokens):
                    raise AssertionError(f"node at {node.start} knows more than it has")
        if size_bytes != self.score_bytes:
            raise AssertionError(f"{self.score_bytes} bytes of scores are said, {size_bytes} kept")


def common_prefix(a: TokenIds, b: TokenIds) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n


def _rank(source: Source) -> tuple[int, bool, int]:
    return source.tokens, source.holder.sequence is None, -source.holder.index


def _upwards(node: Node | None) -> Iterator[Node]:
    """A node and those above it, without the root."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent
