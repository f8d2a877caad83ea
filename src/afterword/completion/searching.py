"""Runs a search for middles as a generation: no event comes before its end (F3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import zip_longest
from types import TracebackType
from typing import Self

from afterword.completion.joints import Candidate, Joint, Trial, joints, promising
from afterword.completion.lengths import LengthCosts
from afterword.completion.search import Draw, Search, best_of, middle_event
from afterword.completion.units import Unit
from afterword.core.job import (
    Counted,
    Ended,
    Event,
    FinishReason,
    Job,
    Prefilled,
    Sampled,
    ScoredPrompt,
)
from afterword.core.pace import Pace
from afterword.core.protocols import Engine, Generation
from afterword.core.wire import InfillReport

_WAVE = 32
"""How many places are scored together."""
_TOKEN_COST = 20.0
_TRIAL_COST = 250.0
"""Costs for ``Pace``: of looking at the places of a drawn token, and of making a trial."""


class Searching:
    """A running search, in the shape of a ``Generation``.

    The engine computes the prompts first, then draws candidates, then scores places in them, each
    as jobs of its own, which share the prompts through the prefix cache. ``clock`` returns
    monotonic seconds. When the time is over, drawing and scoring end, and the best so far is the
    answer; nothing else depends on the clock. A search that was admitted is not refused on its way.
    """

    def __init__(self, search: Search, engine: Engine, clock: Callable[[], float]) -> None:
        self._search = search
        self._engine = engine
        self._clock = clock
        self._stack = AsyncExitStack()
        self._draws = search.draws()
        # Refused here or when it is entered, as any other generation.
        self._first = engine.open(search.opening_jobs(), later=[one.job for one in self._draws])
        self._begun = self._over = False
        self._ends_s = 0.0
        self._late = False
        prompts = range(len(search.jobs))
        self._prefilled: dict[int, Prefilled] = {}
        self._drawn = [0 for _ in prompts]
        self._scored = [0 for _ in prompts]
        self._costs = [LengthCosts(()) for _ in prompts]
        self._places = 0
        self._trials = 0
        self._pace = Pace()

    async def __aenter__(self) -> Self:
        """Enter the first jobs: they are admitted, or refused."""
        await self._stack.enter_async_context(self._first)
        self._ends_s = self._clock() + self._search.most_s
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort what still runs."""
        await self._stack.__aexit__(exc_type, exc, traceback)

    def shorten(self, shortcut: Callable[[list[Event]], bool] | None) -> None:
        """Does nothing: all events come at once."""

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Returns itself."""
        return self

    async def __anext__(self) -> list[Event]:
        """Returns all events at once. After an interruption, the counts so far."""
        if self._over:
            raise StopAsyncIteration
        if self._begun:
            self._over = True
            return [self._counted(prompt, 0) for prompt in self._prefilled]
        self._begun = True
        events = await self._run()
        self._over = True
        return events

    def abort(self, job: int, seq: int) -> None:
        """Do nothing: a choice that comes is whole."""

    @property
    def report(self) -> InfillReport:
        """What the search did so far."""
        return InfillReport(
            found_by="search",
            candidates=max(size.candidates for size in self._search.sizes),
            places=self._places,
            scored=self._trials,
            cut_by_time=self._late,
        )

    async def _run(self) -> list[Event]:
        async for events in self._first:
            for event in events:
                if isinstance(event, Prefilled):
                    self._prefilled[event.job] = event
        found = await self._draw(self._draws)
        self._places = sum(map(len, found))
        scores = await self._score(found)
        chosen = [
            best_of(scored, job.n) for job, scored in zip(self._search.jobs, scores, strict=True)
        ]
        return await self._events(chosen)

    async def _draw(self, draws: Sequence[Draw]) -> list[list[Trial]]:
        """Returns the prompts that score the places that look best, for each prompt."""
        search = self._search
        candidates: dict[tuple[int, int], Candidate] = {}
        async with self._open([one.job for one in draws]) as generation:
            async for events in generation:
                for event in events:
                    if isinstance(event, Sampled):
                        key = event.job, event.seq
                        candidates.setdefault(key, Candidate()).add(event)
                        self._drawn[draws[event.job].prompt] += len(event.tokens)
                if self._is_late():
                    break
        found: list[list[Joint]] = [[] for _ in search.jobs]
        plain: list[list[Sequence[float]]] = [[] for _ in search.jobs]
        for (job, _), candidate in sorted(candidates.items(), key=lambda item: item[0]):
            draw = draws[job]
            if draw.job.prompt_ids == search.jobs[draw.prompt].prompt_ids:
                plain[draw.prompt].append(candidate.logprobs_before(search.vocab.end_ids))
            found[draw.prompt] += joints(
                candidate,
                search.seams[draw.prompt],
                search.vocab,
                search.shown,
                search.sizes[draw.prompt].middle_tokens,
                begun=draw.begun,
            )
            await self._pace.spend(len(candidate.tokens) * _TOKEN_COST)
        units = [seam.unit for seam in search.seams]
        # A line has its length already.
        self._costs = [
            LengthCosts(() if unit == "lines" else texts)
            for unit, texts in zip(units, plain, strict=True)
        ]
        return [
            await self._promising(prompt, places, unit)
            for prompt, (places, unit) in enumerate(zip(found, units, strict=True))
        ]

    def _open(self, jobs: Sequence[Job]) -> Generation:
        return self._engine.open(jobs, admitted=True)

    async def _promising(self, prompt: int, places: Sequence[Joint], unit: Unit) -> list[Trial]:
        """Returns the prompts that score the usable places of a prompt that look best."""
        search, most = self._search, self._search.sizes[prompt].places
        for listed in promising(places, self._costs[prompt], unit):
            usable: list[Trial] = []
            for joint in listed:
                one = search.trial(prompt, joint)
                await self._pace.spend(_TRIAL_COST)
                if one is not None:
                    usable.append(one)
                if len(usable) == most:
                    break
            if usable:
                return usable
        return []

    async def _score(self, found: list[list[Trial]]) -> list[list[tuple[Joint, float]]]:
        """Returns the scored places of each prompt, the most promising first.

        Each prompt has at least one: if there was no time, its most promising one.
        """
        search = self._search
        # In turns, so that a cut by time leaves each prompt its best.
        places = [
            (prompt, one)
            for row in zip_longest(*found)
            for prompt, one in enumerate(row)
            if one is not None
        ]
        scores: list[list[tuple[Joint, float]]] = [[] for _ in found]
        for start in range(0, len(places), _WAVE):
            if self._is_late():
                break
            wave = places[start : start + _WAVE]
            jobs = [search.scoring(prompt, one.ids) for prompt, one in wave]
            found_scores = await self._scores(jobs, until_late=True)
            for at, (prompt, one) in enumerate(wave):
                if at in found_scores:
                    self._count(prompt, one)
                    score = one.score(found_scores[at], self._costs[prompt])
                    scores[prompt].append((one.joint, score))
        return [
            scored or [(row[0].joint if row else Joint("", 0.0), 0.0)]
            for scored, row in zip(scores, found, strict=True)
        ]

    def _count(self, prompt: int, one: Trial) -> None:
        self._trials += 1
        self._scored[prompt] += one.suffix_tokens

    async def _scores(
        self, jobs: Sequence[Job], *, until_late: bool = False
    ) -> Mapping[int, ScoredPrompt]:
        """Returns the scores of jobs that generate nothing, by their places; all or until late."""
        found: dict[int, ScoredPrompt] = {}
        async with self._open(jobs) as generation:
            async for events in generation:
                for event in events:
                    if isinstance(event, Prefilled) and event.scored is not None:
                        found[event.job] = event.scored
                if until_late and self._is_late():
                    break
        return found

    async def _events(self, chosen: list[list[Joint]]) -> list[Event]:
        """Returns the events of an answer whose choices are these middles."""
        search = self._search
        listed = [
            (prompt, choice, joint, search.ids_of(joint.text))
            for prompt, middles in enumerate(chosen)
            for choice, joint in enumerate(middles)
        ]
        shown = [one for one in listed if one[3] and search.jobs[one[0]].logprobs is not None]
        scored: dict[tuple[int, int], ScoredPrompt] = {}
        if shown:
            jobs = [search.entries_job(prompt, ids) for prompt, _, _, ids in shown]
            entries = await self._scores(jobs)
            for at, (prompt, choice, _, _) in enumerate(shown):
                scored[prompt, choice] = entries[at]
        events: list[Event] = []
        for prompt, job in enumerate(search.jobs):
            prefilled = self._prefilled[prompt]
            if job.prompt_logprobs is None:
                prefilled = Prefilled(
                    prompt, prefilled.prompt_tokens, prefilled.cached_tokens, None
                )
            events.append(prefilled)
        used = [0 for _ in chosen]
        for prompt, choice, joint, ids in listed:
            if ids:
                events.append(middle_event(prompt, choice, ids, scored.get((prompt, choice))))
            used[prompt] += len(ids)
            reason: FinishReason = "length" if joint.at_limit else "stop"
            events.append(Ended(prompt, choice, reason, len(ids)))
        return [*events, *(self._counted(prompt, used[prompt]) for prompt in range(len(chosen)))]

    def _counted(self, prompt: int, shown_tokens: int) -> Counted:
        """Returns what a prompt took: all that was computed for it but once (A5)."""
        prefilled = self._prefilled[prompt]
        drew = self._search.shown_suffix_tokens(prompt) if self._drawn[prompt] else 0
        return Counted(
            prompt,
            prefilled.prompt_tokens + drew + self._scored[prompt],
            prefilled.cached_tokens,
            max(self._drawn[prompt] - shown_tokens, 0),
        )

    def _is_late(self) -> bool:
        if self._clock() > self._ends_s:
            self._late = True
        return self._late
