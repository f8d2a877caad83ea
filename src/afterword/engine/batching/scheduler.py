"""Decides what is computed next, and what it meant once it is.

There is no prefill phase and no decode phase: *computed* catches up with *length*. The scheduler
is pure: no clock, no thread, no model library; the same calls give the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import msgspec

from afterword.core.job import Ended, Event, FinishReason, Job, Prefilled
from afterword.engine.batching.chunks import choose_spans
from afterword.engine.batching.drafts import MOST_SEQUENCES, learn, make_drafts
from afterword.engine.batching.line import FairLine
from afterword.engine.batching.memory import Memory, Wait
from afterword.engine.batching.outcome import Outcome, PromptScore, SampledToken, sampled_event
from afterword.engine.batching.prefix_cache import Match
from afterword.engine.batching.runner import ModelRunner
from afterword.engine.batching.sequence import Prompt, Request, Sequence, State
from afterword.engine.batching.slots import Slot, Slots, SlotState, Source
from afterword.engine.batching.step import Step, make_batch
from afterword.engine.sampler import RowError

_LOOK_AHEAD = 64
"""How far into a request's line a sequence is looked for that does not have to wait for another."""
_FEW_SLOTS = 4
_BATCH_SIZES = 12
"""Counted apart: up to 1, 2, 4 and so on to 1,024 sequences, and more."""


def kept_slots(slots: int) -> int:
    """How many slots to have besides ``slots``, for requests that have none yet.

    With fewer than four it would cost too much of the memory.
    """
    return int(slots >= _FEW_SLOTS)


class Counters(msgspec.Struct):
    """What was done since the start; only grows. See ``core.protocols.EngineStats``.

    Drafted tokens are decoded, those accepted are generated as well. ``waited_s`` sums how long
    each of ``started_requests`` was in line before it had a slot or an answer.
    """

    steps: int = 0
    batch_sizes: list[int] = msgspec.field(default_factory=lambda: [0] * _BATCH_SIZES)
    batched_sequences: int = 0
    decoded_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    started_requests: int = 0
    waited_s: float = 0.0

    def copy(self) -> Counters:
        """The same numbers, which no longer change."""
        return msgspec.structs.replace(self, batch_sizes=list(self.batch_sizes))

    def count_step(self, sequences: int) -> None:
        """A step that computed so many sequences together."""
        self.steps += 1
        self.batch_sizes[min((sequences - 1).bit_length(), _BATCH_SIZES - 1)] += 1
        self.batched_sequences += sequences


class Scheduler:
    """Requests in a fair line, sequences in slots, and the next step of both.

    Invariants, see ``check``: a running sequence has exactly one slot and a slot at most one
    sequence; ``computed`` never passes ``length``; a request is known until its last sequence
    has ended.
    """

    def __init__(
        self,
        runner: ModelRunner,
        end_ids: frozenset[int],
        *,
        score_budget_bytes: int,
        checkpoint_budget_bytes: int = 0,
    ) -> None:
        self._slots = Slots(runner.slots, runner.context_tokens)
        self._memory = Memory(
            runner,
            self._slots,
            score_budget_bytes=score_budget_bytes,
            checkpoint_budget_bytes=checkpoint_budget_bytes,
        )
        self._kept_slots = kept_slots(runner.slots - 1)
        self._max_batch_tokens = runner.max_batch_tokens
        self._max_rows = runner.max_rows
        self._end_ids = end_ids
        self._requests: dict[int, Request] = {}
        self._line = FairLine()
        self._waits: dict[Sequence, Wait] = {}
        self._events: list[tuple[int, Event]] = []
        self._failures: list[tuple[int, RowError]] = []
        self._now_s = 0.0
        self.counters = Counters()

    # What the worker asks for.

    def add(self, key: int, jobs: SequenceOf[Job], *, now_s: float = 0.0) -> None:
        """Put the jobs of one request at the end of the line.

        Where nothing may be shared, a request that comes alone finds everything as at the start.
        """
        if self.idle and self._memory.sharing == "none":
            self._memory.start_afresh()
        request = Request(key, jobs, self._end_ids, now_s)
        self._requests[key] = request
        self._line.join(request)

    def abort(self, key: int, job: int, sibling: int) -> None:
        """End one sequence without an event. Unknown ones are over already."""
        request = self._requests.get(key)
        if request is None:
            return
        for sequence in (*request.running, *request.head):
            if (sequence.prompt.index, sequence.sibling) == (job, sibling):
                self._end(sequence)
                return
        request.abort_unmade(job, sibling)
        self._drop_if_over(request)

    def abort_request(self, key: int) -> None:
        """End all sequences of a request without an event."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        for sequence in list(request.running):
            self._leave(sequence)
            sequence.state = State.ENDED
        for sequence in request.head:
            self._stop_waiting(sequence)
        self._line.leave(request)

    def take_failures(self) -> list[tuple[int, RowError]]:
        """Requests given up since the last call because a sequence of theirs could not go on."""
        failures, self._failures = self._failures, []
        return failures

    def take_events(self) -> list[tuple[int, Event]]:
        """What happened since the last call, each with its request's key."""
        events, self._events = self._events, []
        return events

    def ended(self, key: int) -> bool:
        """Whether all sequences of a request are over."""
        return key not in self._requests

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._requests

    # One step.

    def schedule(
        self,
        budget_tokens: int,
        *,
        row_share: float | None = None,
        now_s: float = 0.0,
    ) -> Step | None:
        """The next step: every row that decodes, then at most ``budget_tokens`` of prefill.

        None where nothing is left to compute; events may have come all the same. ``row_share`` is
        what a row costs beside a token, see ``drafts.StepCost``; nothing is drafted without it.
        ``now_s`` is only for the account of who waited how long.
        """
        self._now_s = now_s
        self._memory.keep_states()
        self._place()
        spans = choose_spans(
            self._slots,
            drafted=0 if row_share is None else self._draft(row_share),
            budget_tokens=budget_tokens,
            most_tokens=self._max_batch_tokens,
            most_rows=self._max_rows,
        )
        if not spans:
            # What is trimmed here is trimmed before the next batch.
            return None
        return Step(self._memory.take_instructions(), spans, make_batch(spans))

    def update(self, step: Step, outcomes: SequenceOf[Outcome]) -> None:
        """Take in what a step gave, one outcome for each span."""
        self.counters.count_step(len(step.spans))
        for span, outcome in zip(step.spans, outcomes, strict=True):
            sequence, slot = span.sequence, span.slot
            if sequence.state is not State.RUNNING:
                # A sibling's failure in this step ended it.
                self._memory.trim(slot, slot.computed)
                continue
            refuted = span.drafted and span.drafted + 1 - max(len(outcome.drawn), 1)
            slot.computed = span.start + span.tokens
            if refuted:
                self._memory.trim(slot, slot.computed - refuted)
            if sequence.generated:
                self.counters.decoded_tokens += span.tokens
                self.counters.drafted_tokens += span.drafted
                self.counters.accepted_tokens += span.drafted - refuted
                learn(sequence.draft, [drawn.token for drawn in outcome.drawn])
            else:
                self.counters.prefilled_tokens += span.tokens
            if outcome.found:
                self._learn(sequence.prompt, outcome.found)
            if outcome.drawn:
                self._announce(sequence)
                self._extend(sequence, slot, outcome.drawn)
            elif outcome.error is None and slot.computed == sequence.wanted:
                self._announce(sequence)
                self._finish(sequence, "length")
            if outcome.error is not None:
                self._failures.append((sequence.request.key, outcome.error))
                self.abort_request(sequence.request.key)

    def fail(self, step: Step) -> list[int]:
        """Give up the requests in a step whose decode failed; returns their keys.

        What their slots held is forgotten. Other requests, resident slots and the line go on.
        """
        keys = list(dict.fromkeys(span.sequence.request.key for span in step.spans))
        for key in keys:
            self.abort_request(key)
        self._memory.forget_failed((span.slot.index for span in step.spans), step.instructions)
        return keys

    def _draft(self, row_share: float) -> int:
        """Draft for all running sequences, if they are few and decode; how many tokens for each.

        Where the end of a sequence cannot be trimmed, a draft could not be taken back; where
        nothing may be shared, a row may depend on those beside it.
        """
        running = [(slot, slot.sequence) for slot in self._slots if slot.sequence is not None]
        count = len(running)
        if self._memory.sharing != "cells" or not 0 < count <= MOST_SEQUENCES:
            return 0
        if not all(sequence.generated for _, sequence in running):
            return 0
        most = min(self._max_batch_tokens, self._max_rows) // count - 1
        drafted = min(make_drafts(running, row_share), most)
        for slot, sequence in running:
            start = sequence.length
            slot.tokens[start : start + drafted] = sequence.draft.tokens[:drafted]
        return drafted

    # Slots and the line.

    def _place(self) -> None:
        """Give idle slots to waiting sequences: one each request in turn, oldest first.

        The last idle slot is for a request that has none: one with many sequences, however long
        they are, cannot keep others waiting for their first.
        """

        def place(request: Request) -> bool:
            barred = bool(request.running) and len(self._slots.idle()) <= self._kept_slots
            return not barred and self._place_one(request)

        self._line.serve(lambda: bool(self._slots.idle()), place)

    def _place_one(self, request: Request) -> bool:
        """Start the request's first sequence that need not wait for another; False if none."""
        head = request.look_ahead(_LOOK_AHEAD)
        for at, sequence in enumerate(head):
            waits = self._waits.get(sequence)
            if waits is not None and not waits.over():
                continue
            match = self._memory.cache.match(sequence.prompt.ids)
            source = self._memory.source(sequence.prompt, match)
            if sequence.answered:
                self._answer(sequence)
                return True
            wait = self._memory.worth_waiting_for(sequence.prompt, match, source)
            if wait is not None:
                self._stop_waiting(sequence)
                self._waits[sequence] = wait
                wait.slot.awaited += 1
                continue
            # What others await is for them, but nobody has to wait for that with nothing at all.
            slot = self._slots.victim(source, over_awaited=not request.running)
            if slot is None:
                continue
            self._stop_waiting(sequence)
            del head[at]
            self._start(sequence, slot, source, match)
            return True
        return False

    def _stop_waiting(self, sequence: Sequence) -> None:
        wait = self._waits.pop(sequence, None)
        if wait is not None:
            wait.slot.awaited -= 1

    def _start(self, sequence: Sequence, slot: Slot, source: Source | None, match: Match) -> None:
        request, prompt = sequence.request, sequence.prompt
        self._count_wait(request)
        reused = self._memory.claim(sequence, slot, source, match)
        sequence.state = State.RUNNING
        request.running.append(sequence)
        self._count_cached(prompt, reused)

    def _answer(self, sequence: Sequence) -> None:
        """End a sequence for which nothing has to be computed, without a slot."""
        prompt = sequence.prompt
        self._stop_waiting(sequence)
        self._count_wait(sequence.request)
        if prompt.scores is not None:
            self._count_cached(prompt, len(prompt.ids))
        self._announce(sequence)
        self._finish(sequence, "length")

    def _count_wait(self, request: Request) -> None:
        if not request.started:
            request.started = True
            self.counters.started_requests += 1
            self.counters.waited_s += self._now_s - request.added_s

    def _count_cached(self, prompt: Prompt, tokens: int) -> None:
        """Siblings after the first are not counted: usage counts a prompt once (A5)."""
        if not prompt.announced:
            self.counters.cached_tokens += tokens
            prompt.cached_tokens = tokens

    # What a sequence becomes.

    def _learn(self, prompt: Prompt, found: SequenceOf[PromptScore]) -> None:
        """Keep what a prompt's tokens scored, and tell those that follow it."""
        scores = prompt.scores
        if scores is None:
            raise AssertionError("scores of a prompt that is not scored")
        for entry in found:
            scores.put(entry.position, *entry.score)
            for follower, logprob in entry.branches:
                if follower.scores is not None:
                    k = follower.scores.k
                    follower.scores.take(scores.part(0, entry.position), 0)
                    _, top_ids, top = entry.score
                    follower.scores.put(entry.position, logprob, top_ids[:k], top[:k])
            prompt.followers.pop(entry.position, None)
        if self._memory.sharing != "none":
            self._memory.cache.keep(prompt.ids, scores)

    def _announce(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        if prompt.announced:
            return
        prompt.announced = True
        scored = None if prompt.scores is None else prompt.scores.scored_prompt()
        event = Prefilled(prompt.index, len(prompt.ids), prompt.cached_tokens, scored)
        self._events.append((sequence.request.key, event))

    def _extend(self, sequence: Sequence, slot: Slot, drawn: SequenceOf[SampledToken]) -> None:
        key, counts = sequence.request.key, sequence.counts
        for one in drawn:
            sequence.generated += 1
            self.counters.generated_tokens += 1
            if counts is not None:
                counts[one.token] = counts.get(one.token, 0) + 1
            self._events.append((key, sampled_event(sequence, one)))
            if sequence.ends_with(one.token):
                self._finish(sequence, "stop")
            elif sequence.length == sequence.limit:
                self._finish(sequence, "length")
            else:
                slot.tokens[sequence.length - 1] = one.token

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        event = Ended(sequence.prompt.index, sequence.sibling, reason, sequence.generated)
        self._events.append((sequence.request.key, event))
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        request = sequence.request
        if sequence.state is State.WAITING:
            request.head.remove(sequence)
            self._stop_waiting(sequence)
        else:
            self._leave(sequence)
        sequence.state = State.ENDED
        request.left -= 1
        self._drop_if_over(request)

    def _drop_if_over(self, request: Request) -> None:
        """Forget a request that has ended, and keep none in line that waits for nothing."""
        if not request.left:
            self._requests.pop(request.key, None)
        if not request.waiting:
            self._line.leave(request)

    def _leave(self, sequence: Sequence) -> None:
        self._memory.leave(sequence)
        sequence.request.running.remove(sequence)

    # What others may look at.

    @property
    def decoding(self) -> bool:
        """Whether a running sequence has begun to generate, so that somebody waits for a token."""
        return any(slot.sequence is not None and slot.sequence.generated for slot in self._slots)

    @property
    def running(self) -> int:
        """Sequences that have a slot."""
        return sum(slot.sequence is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return self._line.waiting

    @property
    def waiting_since_s(self) -> float | None:
        """When the oldest request without its first slot arrived; None if there is none."""
        return self._line.waiting_since_s

    @property
    def score_bytes(self) -> int:
        """Memory of the scores that are kept for others."""
        return self._memory.cache.score_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Memory of the states that are kept for others."""
        return self._memory.checkpoint_bytes

    def cells(self) -> tuple[int, int, int]:
        """Cells used, active slots, resident slots."""
        states = [slot.state for slot in self._slots]
        used = sum(slot.computed for slot in self._slots)
        return used, states.count(SlotState.ACTIVE), states.count(SlotState.RESIDENT)

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        self._memory.check()
        for slot in self._slots:
            if slot.awaited != sum(wait.slot is slot for wait in self._waits.values()):
                raise AssertionError(f"slot {slot.index} is awaited by others than it says")
            sequence = slot.sequence
            if sequence is None:
                continue
            sound = (
                sequence.slot == slot.index
                and sequence.state is State.RUNNING
                and sequence in sequence.request.running
                and sequence.request.key in self._requests
                and 0 <= slot.computed <= sequence.length <= sequence.limit <= len(slot.tokens)
            )
            if not sound:
                raise AssertionError(f"slot {slot.index} and its sequence disagree")
        for request in self._requests.values():
            slots = [sequence.slot for sequence in request.running]
            if None in slots or (request.waiting > 0) != (request in self._line):
                raise AssertionError(f"request {request.key} is neither running nor waiting")
