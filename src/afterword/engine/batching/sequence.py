"""Prompts, their continuations (sequences), and the requests that they belong to."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as SequenceOf
from enum import Enum, auto
from functools import cached_property
from typing import Protocol

import msgspec
import numpy as np

from afterword.core.job import Job, SamplingParams
from afterword.engine.arrays import Ids, TokenIds
from afterword.engine.batching.scores import Scores
from afterword.engine.changes import Bias, Mask
from afterword.engine.history import History


class State(Enum):
    """The state of a sequence. It moves forward; a preempted one is waiting again."""

    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


class Prompt:
    """What the siblings of a job share, made once.

    ``end_ids`` are not drawn before ``min_tokens``; ``stop_ids`` are those that end a sequence.
    ``announced`` tells whether the job's ``Prefilled`` was sent; ``cached_tokens`` is what it
    reports, None until the first sibling starts. ``scores`` is None if the job does not ask for
    log-probabilities of the prompt. ``followers`` maps a position to prompts that share all tokens
    before it and wait for the row that predicts it. ``bias`` is the job's ``logit_bias`` as arrays.
    """

    def __init__(
        self, index: int, job: Job, end_ids: frozenset[int], bias: Bias | None = None
    ) -> None:
        self.index = index
        self.job = job
        self.bias = bias
        self.ids: TokenIds = np.array(job.prompt_ids, np.int32)
        more = job.extra_end_ids + job.stop_ids
        self.end_ids = end_ids.union(more) if more else end_ids
        self.stop_ids = frozenset(job.stop_ids) if job.sampling.ignore_eos else self.end_ids
        self.announced = False
        self.cached_tokens: int | None = None
        self.scores: Scores | None = None
        if job.prompt_logprobs is not None:
            self.scores = Scores(
                len(self.ids),
                job.prompt_logprobs,
                scored=len(job.scored_ids),
                ranked=job.prompt_ranks,
            )
        self.followers: dict[int, list[Prompt]] = {}

    @property
    def generates(self) -> bool:
        """Whether any token is wanted beyond the prompt."""
        return self.job.max_tokens > 0

    @property
    def first_row(self) -> int:
        """The position of the first prompt token whose row of logits is wanted.

        A row predicts the token after its own. Tokens before this position need not be computed
        again if their KV is in memory.
        """
        return len(self.ids) - 1 if self.scores is None else self.scores.known - 1

    @cached_property
    def history(self) -> History | None:
        """What penalties know of the prompt; each sibling goes on with a copy. None without.

        It takes long for a long prompt, and the engine's thread makes it.
        """
        sampling = self.job.sampling
        return History(self.ids, sampling) if History.needed(sampling) else None

    @cached_property
    def scored_ids(self) -> Ids:
        """The job's ``scored_ids`` as an array."""
        return np.array(self.job.scored_ids, np.int64)

    @cached_property
    def allowed(self) -> Ids | None:
        """The tokens that can be drawn, as an array; None for all."""
        ids = self.job.sampling.allowed_ids
        return np.array(ids, np.int64) if ids else None

    @cached_property
    def end_array(self) -> Ids:
        """The end tokens as an array, for ``min_tokens``."""
        return np.array(sorted(self.end_ids), np.int64)


CLASSES = 8
"""Number of classes of similarity between two places of a text."""


def _first_odds() -> list[float]:
    """Returns the initial odds of each class: the more similar two places, the likelier."""
    return [0.1 + 0.8 * (number + 0.5) / CLASSES for number in range(CLASSES)]


class Draft(msgspec.Struct):
    """A proposal of the next ``tokens`` of a sequence.

    ``similarity`` is the class (0 to ``CLASSES`` - 1) of the place that the tokens were copied
    from. ``first`` is, for each class, how often the first token of a draft was right; ``next`` is
    how often a token was right after a right one. Both are moving averages from 0 to 1.
    """

    tokens: list[int] = []
    similarity: int = 0
    first: list[float] = msgspec.field(default_factory=_first_odds)
    next: float = 0.8


class GrammarState(Protocol):
    """Where a sequence is in its grammar. Its errors are ``RowError``."""

    def mask(self) -> Mask:
        """Returns which tokens [vocabulary] can come next."""

    def accept(self, token: int) -> None:
        """Go on behind a token."""

    def valid(self, tokens: list[int]) -> int:
        """Returns how many of the tokens can come next, one after the other."""


class Sequence:
    """One sibling of a job.

    ``slot`` is the index of the slot of a running sequence. Invariant of that slot:
    ``0 <= computed <= length <= limit``, and the first ``length`` entries of its ``tokens`` are the
    prompt and the generated tokens. ``ids`` are the tokens that it starts with: the prompt, and
    what it had generated when it was preempted. ``cuts`` are the numbers of computed tokens,
    ascending, at which a step stops so that a checkpoint can be saved. ``history`` is None without
    penalties, ``grammar`` without a constraint.
    """

    __slots__ = (
        "cuts", "draft", "generated", "grammar", "history", "ids", "limit",
        "prompt", "request", "sibling", "slot", "state",
    )  # fmt: skip

    def __init__(self, request: Request, prompt: Prompt, sibling: int) -> None:
        self.request = request
        self.prompt = prompt
        self.sibling = sibling
        self.generated = 0
        self.ids = prompt.ids
        self.limit = len(prompt.ids) + prompt.job.max_tokens
        self.draft = Draft()
        self.cuts: list[int] = []
        self.slot: int | None = None
        self.state = State.WAITING
        constraint = prompt.job.constraint
        self.grammar: GrammarState | None = None
        if constraint is not None:
            self.grammar = constraint.compiled.follow()
        history = prompt.history
        self.history = None if history is None else history.copy()

    @property
    def length(self) -> int:
        """Number of tokens: those of the prompt and the generated ones."""
        return len(self.prompt.ids) + self.generated

    def decodes(self, computed: int) -> bool:
        """Whether, of its tokens, only the last generated one is not computed yet."""
        return self.generated > 0 and computed == self.length - 1

    @property
    def first_row(self) -> int:
        """The position of the first token whose row of logits is wanted."""
        return self.length - 1 if self.generated else self.prompt.first_row

    def preempt(self, ids: TokenIds) -> None:
        """Wait again, with all tokens so far. What follows them is drawn as if nothing happened."""
        self.ids = ids
        self.draft.tokens = []
        self.state = State.WAITING

    def ends_with(self, token: int) -> bool:
        """Whether the sequence stops after this token."""
        return token in self.prompt.stop_ids

    @property
    def answered(self) -> bool:
        """Whether there is nothing to compute: no token is wanted and all scores are known."""
        scores = self.prompt.scores
        if self.prompt.job.warm and self.wanted:
            return False
        return not self.prompt.generates and (scores is None or scores.complete)

    @property
    def wanted(self) -> int:
        """How many tokens have to be computed for now.

        A prompt that is only scored needs no row of its last token, because nothing is sampled.
        """
        return self.length if self.prompt.generates else len(self.prompt.ids) - 1


class Request:
    """The jobs of one request, and its sequences that have no slot yet.

    ``key`` is the worker's name for it, ``added_s`` the time of its arrival. Sequences are made as
    they come near the head of the line, so a request for 2,000 prompts with 128 choices takes no
    more memory than its prompts. They are ordered by the tokens of their prompts: prompts with a
    common prefix follow each other, and each prefix is computed once.
    """

    def __init__(
        self, key: int, jobs: SequenceOf[Job], end_ids: frozenset[int], added_s: float
    ) -> None:
        self.key = key
        self.jobs = jobs
        self.added_s = added_s
        self.started = False
        self.running: list[Sequence] = []
        self.head: deque[Sequence] = deque()
        self.left = sum(job.n for job in jobs)
        self._end_ids = end_ids
        self._aborted: set[tuple[int, int]] = set()
        self._order = _by_tokens(jobs)
        self._places = {index: place for place, index in enumerate(self._order)}
        self._prompt: Prompt | None = None
        self._biased: SamplingParams | None = None
        self._bias: Bias | None = None
        # Place in the order, and sibling, of the next sequence to make.
        self._next = (0, 0)

    def look_ahead(self, count: int) -> deque[Sequence]:
        """Returns up to ``count`` waiting sequences, in order; the caller removes what starts."""
        while len(self.head) < count and self._next[0] < len(self.jobs):
            place, sibling = self._next
            index = self._order[place]
            if self._prompt is None:
                job = self.jobs[index]
                self._prompt = Prompt(index, job, self._end_ids, self._bias_of(job.sampling))
            if (index, sibling) not in self._aborted:
                self.head.append(Sequence(self, self._prompt, sibling))
            if sibling + 1 < self.jobs[index].n:
                self._next = (place, sibling + 1)
            else:
                self._next = (place + 1, 0)
                self._prompt = None
        return self.head

    def _bias_of(self, sampling: SamplingParams) -> Bias | None:
        """Returns the biases as arrays; made once, as they may name the whole vocabulary."""
        if sampling is not self._biased:
            self._biased, self._bias = sampling, Bias.of(sampling.logit_bias)
        return self._bias

    @property
    def waiting(self) -> int:
        """How many sequences of the request have no slot yet."""
        return self.left - len(self.running)

    def abort_unmade(self, index: int, sibling: int) -> None:
        """Keep a sequence that was not made yet from being made."""
        if index not in self._places or sibling >= self.jobs[index].n:
            return
        made = (self._places[index], sibling) < self._next
        if not made and (index, sibling) not in self._aborted:
            self._aborted.add((index, sibling))
            self.left -= 1


def _by_tokens(jobs: SequenceOf[Job]) -> list[int]:
    """Returns indices of the jobs, ordered so that prompts with a common prefix are neighbours."""
    if len(jobs) == 1:
        return [0]
    # Any order of whole tokens will do; the order of their bytes is the fastest to compute.
    keys = [array("i", job.prompt_ids).tobytes() for job in jobs]
    return sorted(range(len(jobs)), key=keys.__getitem__)
