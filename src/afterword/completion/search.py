"""What a search for a middle may do, and its jobs: draw candidates, score places, show the best.

A model without fill-in-the-middle tokens still says how well a middle joins prompt and suffix
(F3). ``searching`` runs the jobs.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal

import msgspec

from afterword.completion.choice import Presentation
from afterword.completion.context_budget import ContextBudget
from afterword.completion.encoding import encode
from afterword.completion.joints import SUFFIX_TOKENS, Joint, Seam, make_seam
from afterword.completion.openings import SHOWN_TOKENS, Opening, openings
from afterword.completion.prompt_text import VocabView
from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.core.job import Job, Sampled, SamplingParams, ScoredPrompt
from afterword.core.limits import Limits
from afterword.core.protocols import Engine, PrefixSharing, Tokenizer

CANDIDATES = 18
"""How many candidates are drawn for a prompt, if the limit on tokens allows."""
PLACES = 64
"""The most places of a prompt's candidates that are scored."""
MIDDLE_TOKENS = 48
"""The longest middle of a request without ``max_tokens``."""
TEMPERATURE = 0.8
"""The temperature of candidates if the request's is 0, which would draw one text only."""
BEHIND_TOKENS = SUFFIX_TOKENS + 8
"""The most tokens that the scored part of a suffix takes behind a middle.

They are a few more than alone, because a token may reach over the joint.
"""


class SearchSize(msgspec.Struct, frozen=True):
    """How much a search computes for each prompt.

    It draws ``candidates`` for middles of ``middle_tokens``, and scores the suffix at ``places``.
    """

    candidates: int
    middle_tokens: int
    places: int

    @property
    def most_tokens(self) -> int:
        """The most tokens that are counted for a prompt, without the prompt."""
        drawn = self.candidates * (self.middle_tokens + 1)
        scored = self.places * BEHIND_TOKENS
        return drawn + scored + SHOWN_TOKENS + BEHIND_TOKENS


class Draw(msgspec.Struct, frozen=True):
    """A job that draws ``job.n`` candidates of a prompt. They continue ``begun``."""

    prompt: int
    begun: str
    job: Job


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """A search for the middles of a request's prompts.

    ``jobs`` are those of the plan: each prompt with ``n`` choices. ``shown`` says how the text of a
    candidate ends.
    """

    jobs: tuple[Job, ...]
    seams: tuple[Seam, ...]
    openings: tuple[tuple[Opening, ...], ...]
    size: SearchSize
    most_s: float
    shown: Presentation
    tokenizer: Tokenizer
    vocab: VocabView

    @property
    def most_tokens(self) -> int:
        """The most tokens that the request can use."""
        return sum(len(job.prompt_ids) + self.size.most_tokens for job in self.jobs)

    @property
    def presentation(self) -> Presentation:
        """What the answer shows. The search has ended the middles as ``shown`` says."""
        return msgspec.structs.replace(
            self.shown, stops=(), min_tokens=0, silent_ids=frozenset[int]()
        )

    def draws(self) -> list[Draw]:
        """Returns the jobs that draw the candidates of all prompts."""
        found = []
        for prompt, job in enumerate(self.jobs):
            drawing = msgspec.structs.replace(
                job,
                max_tokens=self.size.middle_tokens + 1,
                logprobs=0,
                prompt_logprobs=None,
                prompt_ranks=False,
                scored_ids=self.seams[prompt].starts,
            )
            found += self._draws(prompt, drawing)
        return found

    def _draws(self, prompt: int, drawing: Job) -> list[Draw]:
        """Returns the likeliest text of each opening, and in turn what each may draw besides."""
        all_openings = self.openings[prompt]
        sampling = drawing.sampling
        greedy = msgspec.structs.replace(sampling, temperature=0.0)
        likeliest = msgspec.structs.replace(drawing, n=1, sampling=greedy)
        drawn = drawing
        if sampling.temperature == 0:
            wide = msgspec.structs.replace(sampling, temperature=TEMPERATURE)
            drawn = msgspec.structs.replace(drawing, sampling=wide, seed=0)
        first = all_openings[: self.size.candidates]
        left = self.size.candidates - len(first)
        found = []
        for place, opening in enumerate(first):
            count = left // len(first) + (place < left % len(first))
            found.append(Draw(prompt, opening.begun, _with(likeliest, opening.ids, 1)))
            if count:
                found.append(Draw(prompt, opening.begun, _with(drawn, opening.ids, count)))
        return found

    def scoring(self, prompt: int, ids: tuple[int, ...], tops: int = 0) -> Job:
        """Returns a job that scores ids, with ``tops`` likeliest tokens of each position."""
        job = self.jobs[prompt]
        return msgspec.structs.replace(
            job,
            prompt_ids=ids,
            n=1,
            max_tokens=0,
            sampling=SamplingParams(),
            logprobs=None,
            prompt_logprobs=tops,
            prompt_ranks=False,
            scored_ids=(),
        )

    def opening_jobs(self) -> list[Job]:
        """Returns the jobs that compute the prompts, so that all others share them."""
        return [
            msgspec.structs.replace(
                job, n=1, max_tokens=0, logprobs=None, prompt_logprobs=job.prompt_logprobs or 0
            )
            for job in self.jobs
        ]

    def entries_job(self, prompt: int, middle: Sequence[int]) -> Job:
        """Returns a job that finds the log-probabilities of a middle's tokens."""
        job = self.jobs[prompt]
        scoring = self.scoring(prompt, (*job.prompt_ids, *middle), job.logprobs or 0)
        return msgspec.structs.replace(scoring, scored_ids=job.scored_ids)

    def shown_suffix_tokens(self, prompt: int) -> int:
        """Returns how many tokens of a suffix stand before its prompt."""
        longest = max(len(one.ids) for one in self.openings[prompt] if not one.begun)
        return longest - len(self.jobs[prompt].prompt_ids)


def _with(job: Job, ids: tuple[int, ...], n: int) -> Job:
    return msgspec.structs.replace(job, prompt_ids=ids, n=n)


def middle_event(
    prompt: int, choice: int, ids: Sequence[int], scored: ScoredPrompt | None
) -> Sampled:
    """Returns the tokens of a middle as if a sequence had drawn them.

    ``scored`` has the log-probabilities of a prompt that ends with them; None if none are shown.
    """
    tokens = array("i", ids)
    if scored is None:
        return Sampled(prompt, choice, tokens, array("d"), array("i"), array("d"))
    count, width = len(ids), len(scored.top_ids) // len(scored.logprobs)
    tops = len(scored.top_ids) - count * width
    return Sampled(
        prompt,
        choice,
        tokens,
        scored.logprobs[-count:],
        scored.top_ids[tops:],
        scored.top_logprobs[tops:],
    )


def best_of(scores: Sequence[tuple[Joint, float]], n: int) -> list[Joint]:
    """Returns the n joints with the highest scores, best first; the earlier one on a tie.

    If there are fewer than n, the last ones repeat the first ones.
    """
    order = sorted(range(len(scores)), key=lambda at: -scores[at][1])[:n]
    return [scores[order[at % len(order)]][0] for at in range(n)]


def infill_way(engine: Engine) -> Literal["tokens", "search"] | None:
    """Returns how an engine's model honours ``suffix``; None if it refuses it (F2, F3)."""
    if engine.tokenizer.infill is not None:
        return "tokens"
    return "search" if engine.card.prefix_sharing == "cells" else None


def refuse_search(sharing: PrefixSharing | None, prompts: int, limits: Limits) -> None:
    """Raises ``InvalidRequest`` if a search would compute each prompt many times, or too many."""
    if sharing != "cells":
        raise InvalidRequest(
            "This model has no fill-in-the-middle tokens and cannot honour 'suffix': to search for "
            "a middle, its engine would have to share what it computed of a prompt.",
            param="suffix",
        )
    sequences = prompts * (CANDIDATES + PLACES)
    if sequences > limits.max_choices:
        raise InvalidRequest(
            f"Invalid value for 'prompt': a search for the middles of {prompts} prompts may take "
            f"{sequences} sequences; a request may have {limits.max_choices} (max_choices).",
            param="prompt",
            code="invalid_value",
        )


def search_size(
    asked: int | None,
    counts: tuple[int, int],
    prompt_tokens: int,
    budget: ContextBudget,
    *,
    asked_by: str = "max_tokens",
) -> SearchSize:
    """Returns what a search may compute for a prompt. ``counts`` are n and the candidates asked.

    ``asked_by`` is the name of the field that limits the middle.

    Raises ``InvalidRequest`` if the limit on tokens leaves fewer candidates than were asked for,
    and ``ContextLengthExceeded`` if the suffix does not fit behind a middle.
    """
    n, candidates = counts
    context, limits = budget.context_tokens, budget.limits
    left = context - prompt_tokens - BEHIND_TOKENS
    most = limits.infill_tokens
    middle = asked
    if middle is None:
        wanted = limits.default_max_tokens or MIDDLE_TOKENS
        middle = max(min(wanted, left, most // (2 * candidates) - 1), 1)
    if middle > left:
        raise ContextLengthExceeded(
            context=context, prompt=prompt_tokens + BEHIND_TOKENS, completion=middle
        )
    drawn = min(max(CANDIDATES, candidates), most // 2 // (middle + 1))
    places = min((most - drawn * (middle + 1)) // SUFFIX_TOKENS, PLACES)
    if drawn < candidates or places < n:
        name = "best_of" if candidates > n else "n" if n > 1 else asked_by
        raise InvalidRequest(
            f"Invalid value for '{name}': {candidates} texts of {middle} tokens were asked for. "
            "This model has no fill-in-the-middle tokens and searches for a middle among texts of "
            f"{most // 2} tokens together, half of infill_tokens.",
            param=name,
            code="invalid_value",
        )
    return SearchSize(drawn, middle, places)


class Around(msgspec.Struct, frozen=True):
    """What is around the middles of a request, and how their text ends."""

    suffix: str
    shown: Presentation
    tokenizer: Tokenizer
    vocab: VocabView
    budget: ContextBudget


def plan_search(jobs: Sequence[Job], around: Around, sizes: Sequence[SearchSize]) -> Search:
    """Returns the search for jobs whose prompts are followed by a suffix, each with its size."""
    tokenizer, vocab, budget = around.tokenizer, around.vocab, around.budget
    after = encode("suffix", around.suffix, tokenizer, parse_special=False, continues=True)
    size = min(sizes, key=lambda one: one.middle_tokens)
    room = budget.context_tokens - size.middle_tokens - 1
    return Search(
        jobs=tuple(jobs),
        seams=tuple(make_seam(job.prompt_ids, after, tokenizer, vocab) for job in jobs),
        openings=tuple(
            tuple(openings(job.prompt_ids, around.suffix, after, tokenizer, vocab, room))
            for job in jobs
        ),
        size=size,
        most_s=budget.limits.infill_s,
        shown=around.shown,
        tokenizer=tokenizer,
        vocab=vocab,
    )
