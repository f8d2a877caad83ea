"""The radix tree against brute force: it finds longest common prefixes and correct scores."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from afterword.engine.batching.prefix_cache import EDGE_BYTES, PrefixCache, common_prefix
from afterword.engine.batching.scores import Score, Scores
from afterword.engine.batching.slots import Slot
from support.examples import examples

SLOTS = 3
# One prompt always fits, though each of its tokens may be an edge.
BUDGET_BYTES = 11 * EDGE_BYTES
# There are two tokens and short prompts, so that edges are cut everywhere.
SCOPES = st.sampled_from(["", "a"])
IDS = st.lists(st.integers(1, 2), min_size=1, max_size=9)


def array(ids: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(ids, np.int32)


def logprob(prefix: list[int]) -> float:
    """Returns a score for the last token of ``prefix``, which is different for each prefix."""
    return -float("".join(map(str, prefix)))


def found(ids: list[int], known: int, k: int) -> Scores:
    scores = Scores(len(ids), k)
    for at in range(1, known):
        top = [logprob(ids[: at + 1]) - i for i in range(k)]
        scores.put(at, Score(logprob(ids[: at + 1]), np.arange(k), np.array(top, np.float64)))
    return scores


class PrefixCacheMachine(RuleBasedStateMachine):
    """Slots gain and lose tokens, and prompts are scored in part or whole, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(BUDGET_BYTES)
        self.slots = [Slot(i) for i in range(SLOTS)]
        self.held: list[list[int]] = [[] for _ in range(SLOTS)]
        self.kept: set[tuple[str, int]] = set()

    @rule(
        slot=st.integers(0, SLOTS - 1),
        ids=IDS | st.just([]),
        computed=st.integers(0, 9),
        scope=SCOPES,
    )
    def hold(self, slot: int, ids: list[int], computed: int, scope: str) -> None:
        self.slots[slot].scope = scope
        self.cache.hold(self.slots[slot], array(ids))
        self.held[slot] = ids
        self.slots[slot].computed = min(computed, len(ids))

    @rule(ids=IDS, known=st.integers(1, 9), k=st.integers(0, 2), scope=SCOPES)
    def keep(self, ids: list[int], known: int, k: int, scope: str) -> None:
        self.cache.keep(array(ids), found(ids, min(known, len(ids)), k), scope)
        self.kept.add((scope, ids[0]))

    @rule(ids=IDS, scope=SCOPES)
    def the_best_holder_is_found(self, ids: list[int], scope: str) -> None:
        best = self.cache.best(
            self.cache.match(array(ids), scope), lambda slot, depth: min(slot.computed, depth)
        )
        shared = [
            min(slot.computed, common_prefix(array(ids), array(held))) * (slot.scope == scope)
            for slot, held in zip(self.slots, self.held, strict=True)
        ]
        assert (best.tokens if best is not None else 0) == max(shared)
        if best is not None:
            assert shared[best.holder.index] == best.tokens

    @rule(ids=IDS, k=st.integers(0, 2), scope=SCOPES)
    def what_is_read_is_what_was_found(self, ids: list[int], k: int, scope: str) -> None:
        scores = Scores(len(ids), k)
        self.cache.read(self.cache.match(array(ids), scope), scores)
        assert scores.known == 1 or (scope, ids[0]) in self.kept
        assert scores.part(0, scores.known).logprobs[1:].tolist() == [
            logprob(ids[: at + 1]) for at in range(1, scores.known)
        ]
        expected = found(ids, scores.known, k).part(0, scores.known)
        assert np.array_equal(scores.part(0, scores.known).top_logprobs, expected.top_logprobs)

    @rule(ids=IDS, k=st.integers(0, 2), scope=SCOPES)
    def what_was_kept_last_is_known(self, ids: list[int], k: int, scope: str) -> None:
        self.keep(ids, len(ids), k, scope)
        scores = Scores(len(ids), 0)
        self.cache.read(self.cache.match(array(ids), scope), scores)
        assert scores.complete

    @invariant()
    def sound(self) -> None:
        self.cache.check()
        assert self.cache.score_bytes <= BUDGET_BYTES


TestPrefixCache = PrefixCacheMachine.TestCase
TestPrefixCache.settings = settings(
    max_examples=examples(200), stateful_step_count=30, deadline=None
)


def test_a_scope_is_forgotten_with_its_last_node() -> None:
    """So requests with a salt of their own leave nothing behind."""
    cache, slot = PrefixCache(BUDGET_BYTES), Slot(0)
    for number in range(1000):
        slot.scope = str(number)
        cache.hold(slot, array([1, 2, 3]))
        # Each scope that is kept has nodes, and each node a holder or scores.
        cache.check()
    cache.hold(slot, array([]))
    cache.check()
    assert cache.match(array([1]), "999").tokens == 0


def known(cache: PrefixCache, ids: list[int], k: int = 0) -> int:
    scores = Scores(len(ids), k)
    cache.read(cache.match(array(ids)), scores)
    return scores.known


def test_scores_that_cover_less_replace_none() -> None:
    cache, ids = PrefixCache(BUDGET_BYTES), [1, 2, 1, 1, 2]
    cache.keep(array(ids), found(ids, 5, 1))
    for positions, k in ((3, 1), (5, 0), (3, 2)):
        cache.keep(array(ids), found(ids, positions, k))
        assert known(cache, ids, 1) == 5
    cache.keep(array(ids), found(ids, 5, 2))
    assert known(cache, ids, 2) == 5


def test_scores_that_were_used_last_are_kept_longest() -> None:
    cache, slot = PrefixCache(4 * EDGE_BYTES), Slot(0)
    first, second, third, fourth, fifth = ([at, *range(10, 30)] for at in range(1, 6))
    for ids in (first, second, third):
        cache.keep(array(ids), found(ids, len(ids), 0))
    # One is continued by a new prompt, one is held by a slot.
    cache.touch(cache.match(array([*second, 7])))
    cache.hold(slot, array(first))
    for ids, gone in ((fourth, third), (fifth, second)):
        cache.keep(array(ids), found(ids, len(ids), 0))
        assert known(cache, gone) == 1
        assert known(cache, ids) == len(ids)
        assert known(cache, first) == len(first)


def test_the_budget_is_of_all_that_kept_scores_take() -> None:
    """An infill scores many places that are a few tokens apart (F3)."""
    budget_bytes = 512 * 1024
    cache = PrefixCache(budget_bytes)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for prompt in range(100):
            for place in range(64):
                ids = [1, 2, 3, 10 + prompt, 5, 10 + place, 6, 7]
                cache.keep(array(ids), found(ids, len(ids), 0))
        taken_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert budget_bytes // 2 <= taken_bytes <= budget_bytes
