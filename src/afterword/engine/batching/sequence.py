"""One continuation of a prompt, and the request whose sequences wait and end together."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as SequenceOf
from enum import Enum, auto
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.job import Job
from afterword.engine.batching.scores import Scores
from afterword.engine.sampler import Bias, Ids

TokenIds = npt.NDArray[np.int32]


class State(Enum):
    """Where a sequence is in its life; it only moves forward."""

    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


class Prompt:
    """What the siblings of a job share, made once.

    ``announced``: whether the job's ``Prefilled`` was sent; ``cached_tokens``: what it will say.
    ``scores`` is None where the prompt's own log-probabilities are not wanted. ``followers`` are
    prompts that wait for what is found at a position: they begin with all tokens before it.
    """

    def __init__(self, index: int, job: Job, end_ids: frozenset[int]) -> None:
        self.index = index
        self.job = job
        self.ids: TokenIds = np.array(job.prompt_ids, np.int32)
        self.end_ids = end_ids.union(job.extra_end_ids) if job.extra_end_ids else end_ids
        self.announced = False
        self.cached_tokens = 0
        self.scores: Scores | None = None
        if job.prompt_logprobs is not None:
            self.scores = Scores(len(self.ids), job.prompt_logprobs)
        self.followers: dict[int, list[Prompt]] = {}

    @property
    def generates(self) -> bool:
        """Whether any token is wanted beyond the prompt."""
        return self.job.max_tokens > 0

    @property
    def first_row(self) -> int:
        """The first of the prompt's tokens whose row of logits is wanted.

        A row tells of the token after it. What comes before needs not be computed again if its
        KV is at hand.
        """
        return len(self.ids) - 1 if self.scores is None else self.scores.known - 1

    @cached_property
    def bias(self) -> Bias | None:
        """The job's ``logit_bias`` as arrays."""
        return Bias.of(self.job.sampling.logit_bias)

    @cached_property
    def end_array(self) -> Ids:
        """The end tokens as an array, for ``min_tokens``."""
        return np.array(sorted(self.end_ids), np.int64)


CLASSES = 8
"""How many classes of similarity there are between two places of a text."""


def _first_odds() -> list[float]:
    """The odds before anything was seen: the more similar two places, the likelier."""
    return [0.1 + 0.8 * (number + 0.5) / CLASSES for number in range(CLASSES)]


class Draft(msgspec.Struct):
    """How a sequence may go on: ``tokens`` from a place of one of ``CLASSES`` of ``similarity``.

    ``first`` is how often the first token of a draft of each class was right, ``next`` how often a
    token was right whose predecessor was right.
    """

    tokens: list[int] = []
    similarity: int = 0
    first: list[float] = msgspec.field(default_factory=_first_odds)
    next: float = 0.8


class Sequence:
    """One sibling of a job.

    ``slot`` is the index of the slot that a running sequence has. Invariant of that slot:
    ``0 <= computed <= length <= limit``, and the first ``length`` entries of its ``tokens`` are the
    prompt and the generated tokens. ``cuts`` are the numbers of computed tokens, ascending, at
    which a step stops so that the state can be kept.
    """

    __slots__ = (
        "counts", "cuts", "draft", "generated", "limit",
        "prompt", "request", "sibling", "slot", "state",
    )  # fmt: skip

    def __init__(self, request: Request, prompt: Prompt, sibling: int) -> None:
        self.request = request
        self.prompt = prompt
        self.sibling = sibling
        self.generated = 0
        self.limit = len(prompt.ids) + prompt.job.max_tokens
        self.draft = Draft()
        self.cuts: list[int] = []
        self.slot: int | None = None
        self.state = State.WAITING
        sampling = prompt.job.sampling
        penalised = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.counts: dict[int, int] | None = {} if penalised else None

    @property
    def length(self) -> int:
        """Tokens there are: the prompt's and the generated ones."""
        return len(self.prompt.ids) + self.generated

    def ends_with(self, token: int) -> bool:
        """Whether nothing comes after this token."""
        return token in self.prompt.end_ids and not self.prompt.job.sampling.ignore_eos

    @property
    def answered(self) -> bool:
        """Whether nothing has to be computed: no token is wanted, and all scores are known."""
        scores = self.prompt.scores
        return not self.prompt.generates and (scores is None or scores.complete)

    @property
    def wanted(self) -> int:
        """How many tokens have to be computed for now.

        A prompt that is only scored needs no row from its last token, since none is drawn.
        """
        return self.length if self.prompt.generates else len(self.prompt.ids) - 1


class Request:
    """The jobs of one request, and those of their siblings that have no slot yet.

    ``key`` is the worker's name for it, ``added_s`` when it came. Sequences are made as they come
    near the head of the line: a request for 2,000 prompts with 128 choices costs no more memory
    than its prompts. Their order is that of the prompts' tokens, in which those that begin alike
    follow each other, so that each beginning is computed once and can go when it has served.
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
        # Place in the order, and sibling, of the next sequence to make.
        self._next = (0, 0)

    def look_ahead(self, count: int) -> deque[Sequence]:
        """The next ``count`` waiting sequences at most, in order; the caller removes from it."""
        while len(self.head) < count and self._next[0] < len(self.jobs):
            place, sibling = self._next
            index = self._order[place]
            if self._prompt is None:
                self._prompt = Prompt(index, self.jobs[index], self._end_ids)
            if (index, sibling) not in self._aborted:
                self.head.append(Sequence(self, self._prompt, sibling))
            if sibling + 1 < self.jobs[index].n:
                self._next = (place, sibling + 1)
            else:
                self._next = (place + 1, 0)
                self._prompt = None
        return self.head

    @property
    def waiting(self) -> int:
        """How many of its sequences have no slot yet."""
        return self.left - len(self.running)

    def abort_unmade(self, index: int, sibling: int) -> None:
        """Remember that a sequence that was not made yet is not to be made."""
        if index not in self._places or sibling >= self.jobs[index].n:
            return
        made = (self._places[index], sibling) < self._next
        if not made and (index, sibling) not in self._aborted:
            self._aborted.add((index, sibling))
            self.left -= 1


def _by_tokens(jobs: SequenceOf[Job]) -> list[int]:
    """Indices of the jobs so that prompts which begin alike stand together."""
    if len(jobs) == 1:
        return [0]
    # Any order of whole tokens will do; that of their bytes is the quickest.
    keys = [array("i", job.prompt_ids).tobytes() for job in jobs]
    return sorted(range(len(jobs)), key=keys.__getitem__)
