"""A search for a middle, as jobs: draw candidates, score places, show the best.

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
from afterword.completion.joints import Joint, Seam, Trial, make_seam, trial
from afterword.completion.openings import Opening, openings
from afterword.completion.prompt_text import VocabView
from afterword.completion.search_size import SearchSize
from afterword.core.job import Job, Sampled, SamplingParams, ScoredPrompt
from afterword.core.protocols import Engine, Tokenizer

TEMPERATURE = 0.8
"""The temperature of candidates if the request's is 0, which would draw one text only."""


class Draw(msgspec.Struct, frozen=True):
    """A job that draws ``job.n`` candidates of a prompt. They continue ``begun``."""

    prompt: int
    begun: str
    job: Job


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """A search for the middles of a request's prompts.

    ``jobs`` are those of the plan: each prompt with ``n`` choices. Each has a size of its own, so
    that a prompt finds the same middle alone and in an array (D2). ``shown`` says how the text of a
    candidate ends.
    """

    jobs: tuple[Job, ...]
    seams: tuple[Seam, ...]
    openings: tuple[tuple[Opening, ...], ...]
    sizes: tuple[SearchSize, ...]
    context_tokens: int
    most_s: float
    shown: Presentation
    tokenizer: Tokenizer
    vocab: VocabView

    @property
    def most_tokens(self) -> int:
        """The most tokens that the request can use."""
        return sum(
            len(job.prompt_ids) + size.most_tokens
            for job, size in zip(self.jobs, self.sizes, strict=True)
        )

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
                max_tokens=self.sizes[prompt].middle_tokens + 1,
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
        candidates = self.sizes[prompt].candidates
        first = all_openings[:candidates]
        left = candidates - len(first)
        found = []
        for place, opening in enumerate(first):
            count = left // len(first) + (place < left % len(first))
            found.append(Draw(prompt, opening.begun, _with(likeliest, opening.ids, 1)))
            if count:
                found.append(Draw(prompt, opening.begun, _with(drawn, opening.ids, count)))
        return found

    def trial(self, prompt: int, joint: Joint) -> Trial | None:
        """Returns the prompt that scores a joint; None if the middle is too long to be one.

        Its text may take more tokens than were drawn: after an indentation that it began with, and
        where tokens are no text's own, such as the names of special ones.
        """
        if len(self.ids_of(joint.text)) > self.sizes[prompt].middle_tokens:
            return None
        found = trial(joint, self.seams[prompt], self.tokenizer)
        return found if len(found.ids) <= self.context_tokens else None

    def ids_of(self, text: str) -> Sequence[int]:
        """Returns the tokens of a middle."""
        if not text:
            return []
        return encode("suffix", text, self.tokenizer, parse_special=False, continues=True)

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
    rooms = [budget.context_tokens - size.middle_tokens - 1 for size in sizes]
    return Search(
        jobs=tuple(jobs),
        seams=tuple(make_seam(job.prompt_ids, after, tokenizer, vocab) for job in jobs),
        openings=tuple(
            tuple(
                openings(job.prompt_ids, around.suffix, after, tokenizer, vocab, most_tokens=room)
            )
            for job, room in zip(jobs, rooms, strict=True)
        ),
        sizes=tuple(sizes),
        context_tokens=budget.context_tokens,
        most_s=budget.limits.infill_s,
        shown=around.shown,
        tokenizer=tokenizer,
        vocab=vocab,
    )
