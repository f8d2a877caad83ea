"""Decides what is computed next, and what it meant once it is.

There is no prefill phase and no decode phase: *computed* catches up with *length*. The scheduler
is pure: no clock, no thread, no model library; the same calls give the same steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf

import msgspec

from afterword.core.job import Ended, Event, FinishReason, Job, Prefilled
from afterword.engine.batching.outcome import Outcome, sampled_event
from afterword.engine.batching.runner import Fork, KVInstruction, ModelRunner, Trim
from afterword.engine.batching.scores import Scores
from afterword.engine.batching.sequence import Prompt, Request, Sequence, State
from afterword.engine.batching.slots import Slot, Slots, SlotState, Source
from afterword.engine.batching.step import Span, Step, make_batch
from afterword.engine.sampler import NothingToDrawError

_LOOK_AHEAD = 64
"""How far into a request's line a sequence is looked for that does not have to wait for another."""
_WORTH_WAITING_TOKENS = 16
"""A prefix that another slot is about to compute is waited for if it saves more than this."""


class Deferred(msgspec.Struct, frozen=True):
    """A sequence waits until ``slot`` has computed ``tokens`` tokens for ``until``."""

    slot: Slot
    owner: Sequence
    tokens: int

    def over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.slot.sequence is not self.owner or self.slot.computed >= self.tokens


class Counters(msgspec.Struct):
    """What was done since the start; only grows."""

    steps: int = 0
    decoded_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


class Scheduler:
    """Requests in a fair line, sequences in slots, and the next step of both.

    Invariants, see ``check``: a running sequence has exactly one slot and a slot at most one
    sequence; ``computed`` never passes ``length``; a request is known until its last sequence
    has ended.
    """

    def __init__(self, runner: ModelRunner, end_ids: frozenset[int]) -> None:
        self._slots = Slots(
            runner.slots, runner.context_tokens, least_shared_tokens=runner.least_shared_tokens
        )
        self._max_batch_tokens = runner.max_batch_tokens
        self._max_rows = runner.max_rows
        self._end_ids = end_ids
        self._requests: dict[int, Request] = {}
        self._line: deque[Request] = deque()
        self._deferred: dict[Sequence, Deferred] = {}
        self._instructions: list[KVInstruction] = []
        self._events: list[tuple[int, Event]] = []
        self._failures: list[tuple[int, NothingToDrawError]] = []
        self.counters = Counters()

    # What the worker asks for.

    def add(self, key: int, jobs: SequenceOf[Job]) -> None:
        """Put the jobs of one request at the end of the line."""
        request = Request(key, jobs, self._end_ids)
        self._requests[key] = request
        self._line.append(request)

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
            self._leave_slot(sequence)
            sequence.state = State.ENDED
        for sequence in request.head:
            self._deferred.pop(sequence, None)
        if request in self._line:
            self._line.remove(request)

    def take_failures(self) -> list[tuple[int, NothingToDrawError]]:
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

    def schedule(self, budget_tokens: int) -> Step | None:
        """The next step: every row that decodes, then at most ``budget_tokens`` of prefill.

        None where nothing is left to compute; events may have come all the same.
        """
        self._place()
        spans = self._spans(budget_tokens)
        if not spans:
            # What is trimmed here is trimmed before the next batch.
            return None
        instructions, self._instructions = self._instructions, []
        return Step(instructions, spans, make_batch(spans))

    def update(self, step: Step, outcomes: SequenceOf[Outcome]) -> None:
        """Take in what a step gave, one outcome for each span."""
        self.counters.steps += 1
        for span, outcome in zip(step.spans, outcomes, strict=True):
            sequence, slot = span.sequence, span.slot
            slot.computed = span.start + span.tokens
            if sequence.state is not State.RUNNING:
                continue  # a sibling's failure in this step ended it
            if span.tokens == 1 and sequence.generated:
                self.counters.decoded_tokens += 1
            else:
                self.counters.prefilled_tokens += span.tokens
            for score in outcome.scores:
                slot.scores.append(*score)
            if outcome.error is not None:
                self._failures.append((sequence.request.key, outcome.error))
                self.abort_request(sequence.request.key)
            elif slot.computed == sequence.wanted:
                self._announce(sequence, slot.scores)
                if outcome.token is None:
                    self._finish(sequence, "length")
                else:
                    self._extend(sequence, slot, outcome, outcome.token)

    def fail(self, step: Step) -> list[int]:
        """Give up the requests in a step whose decode failed; returns their keys.

        What their slots held is forgotten. Other requests, resident slots and the line go on.
        """
        keys = list(dict.fromkeys(span.sequence.request.key for span in step.spans))
        touched = {span.slot.index for span in step.spans}
        touched |= {i.destination for i in step.instructions if isinstance(i, Fork)}
        for key in keys:
            self.abort_request(key)
        for slot in self._slots:
            if slot.index in touched:
                self._forget(slot)
        return keys

    # Slots and the line.

    def _place(self) -> None:
        """Give idle slots to waiting sequences: one each request in turn, oldest first."""
        blocked = 0
        while self._line and blocked < len(self._line) and self._slots.idle():
            request = self._line[0]
            self._line.rotate(-1)
            blocked = 0 if self._place_one(request) else blocked + 1
            if not request.waiting and request in self._line:
                self._line.remove(request)
                blocked = 0

    def _place_one(self, request: Request) -> bool:
        """Start the request's first sequence that need not wait for another; False if none."""
        head = request.look_ahead(_LOOK_AHEAD)
        for at, sequence in enumerate(head):
            deferred = self._deferred.get(sequence)
            if deferred is not None and not deferred.over():
                continue
            source = self._slots.best(sequence.prompt, lambda slot: slot.computed)
            if (source.tokens if source else 0) >= sequence.wanted:
                self._answer_from_cache(sequence, source)
                return True
            wait = self._worth_waiting_for(sequence, source.tokens if source else 0)
            if wait is not None:
                self._deferred[sequence] = wait
                continue
            self._deferred.pop(sequence, None)
            del head[at]
            self._start(sequence, source)
            return True
        return False

    def _worth_waiting_for(self, sequence: Sequence, saved: int) -> Deferred | None:
        """The running slot that will soon hold more of the prompt than is saved now."""
        coming = self._slots.best(sequence.prompt, _will_compute)
        if coming is None or coming.tokens < saved + _WORTH_WAITING_TOKENS:
            return None
        owner = coming.slot.sequence
        if owner is None or coming.slot.computed >= _will_compute(coming.slot):
            return None
        needed = coming.tokens + 1 if sequence.prompt.scored else coming.tokens
        return Deferred(coming.slot, owner, min(needed, _will_compute(coming.slot)))

    def _start(self, sequence: Sequence, source: Source | None) -> None:
        slot = self._slots.victim(source)
        reused = source.tokens if source is not None else 0
        prompt = sequence.prompt
        kept = reused + 1 if prompt.scored else reused
        if source is not None and source.slot is slot:
            self._instructions.append(Trim(slot.index, reused))
            slot.scores.trim(kept)
        else:
            if slot.computed:
                self._instructions.append(Trim(slot.index, 0))
            slot.scores = Scores(prompt.job.prompt_logprobs or 0)
            if source is not None:
                self._slots.touch(source.slot)
                self._instructions.append(Fork(source.slot.index, slot.index, reused))
                slot.scores = source.slot.scores.fork(kept)
        slot.computed = reused
        slot.tokens[: len(prompt.ids)] = prompt.ids
        slot.sequence, sequence.slot = sequence, slot
        sequence.state = State.RUNNING
        sequence.request.running.append(sequence)
        self._slots.touch(slot)
        self._count_cached(prompt, reused)

    def _answer_from_cache(self, sequence: Sequence, source: Source | None) -> None:
        """End a sequence for which nothing is left to compute, without a slot."""
        self._deferred.pop(sequence, None)
        if source is None:
            self._announce(sequence, Scores(sequence.prompt.job.prompt_logprobs or 0))
        else:
            self._slots.touch(source.slot)
            self._count_cached(sequence.prompt, source.tokens)
            self._announce(sequence, source.slot.scores)
        self._finish(sequence, "length")

    def _count_cached(self, prompt: Prompt, tokens: int) -> None:
        """Siblings after the first are not counted: usage counts a prompt once (A5)."""
        if not prompt.announced:
            self.counters.cached_tokens += tokens
            prompt.cached_tokens = tokens

    def _spans(self, budget_tokens: int) -> list[Span]:
        """Decoding rows first, then prefill: half to the oldest, the rest shortest first."""
        spans: list[Span] = []
        prefilling: list[tuple[int, Slot]] = []
        for slot in self._slots:
            sequence = slot.sequence
            if sequence is None:
                continue
            if sequence.generated:
                spans.append(Span(sequence, slot, slot.computed, 1, 1, samples=True))
            else:
                prefilling.append((sequence.wanted - slot.computed, slot))
        budget = min(budget_tokens, self._max_batch_tokens - len(spans))
        rows = self._max_rows - len(spans)
        if prefilling:
            oldest = min(prefilling, key=lambda entry: entry[1].last_used)
            prefilling.sort(key=lambda entry: (entry[0], entry[1].last_used))
            share: dict[int, int] = {oldest[1].index: min(oldest[0], max(budget // 2, 1))}
            left = budget - share[oldest[1].index]
            for remaining, slot in prefilling:
                more = min(remaining - share.get(slot.index, 0), left)
                share[slot.index] = share.get(slot.index, 0) + more
                left -= more
            # The oldest first, so that rows cannot run out before it.
            prefilling.sort(key=lambda entry: entry[1] is not oldest[1])
            for _, slot in prefilling:
                span = self._prefill_span(slot, share[slot.index], rows)
                if span is not None:
                    spans.append(span)
                    rows -= span.rows
        # Runners want slots in order.
        spans.sort(key=lambda span: span.slot.index)
        return spans

    @staticmethod
    def _prefill_span(slot: Slot, tokens: int, rows: int) -> Span | None:
        sequence = slot.sequence
        if sequence is None or tokens <= 0 or rows <= 0:
            return None
        if sequence.prompt.scored:
            tokens = min(tokens, rows)
        end = slot.computed + tokens
        samples = end == sequence.length
        wanted = tokens if sequence.prompt.scored else int(samples)
        return Span(sequence, slot, slot.computed, tokens, wanted, samples=samples)

    # What a sequence becomes.

    def _announce(self, sequence: Sequence, scores: Scores) -> None:
        prompt = sequence.prompt
        if prompt.announced:
            return
        prompt.announced = True
        scored = None
        if prompt.job.prompt_logprobs is not None:
            scored = scores.prompt(len(prompt.ids), prompt.job.prompt_logprobs)
        event = Prefilled(prompt.index, len(prompt.ids), prompt.cached_tokens, scored)
        self._events.append((sequence.request.key, event))

    def _extend(self, sequence: Sequence, slot: Slot, outcome: Outcome, token: int) -> None:
        sequence.generated += 1
        self.counters.generated_tokens += 1
        if sequence.counts is not None:
            sequence.counts[token] = sequence.counts.get(token, 0) + 1
        self._events.append((sequence.request.key, sampled_event(sequence, outcome, token)))
        if token in sequence.prompt.end_ids and not sequence.prompt.job.sampling.ignore_eos:
            self._finish(sequence, "stop")
        elif sequence.length == sequence.limit:
            self._finish(sequence, "length")
        else:
            slot.tokens[sequence.length - 1] = token

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        event = Ended(sequence.prompt.index, sequence.sibling, reason, sequence.generated)
        self._events.append((sequence.request.key, event))
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        request = sequence.request
        if sequence.state is State.WAITING:
            request.head.remove(sequence)
            self._deferred.pop(sequence, None)
        else:
            self._leave_slot(sequence)
        sequence.state = State.ENDED
        request.left -= 1
        self._drop_if_over(request)

    def _drop_if_over(self, request: Request) -> None:
        """Forget a request that has ended, and keep none in line that waits for nothing."""
        if not request.left:
            self._requests.pop(request.key, None)
        if not request.waiting and request in self._line:
            self._line.remove(request)

    def _leave_slot(self, sequence: Sequence) -> None:
        slot = sequence.slot
        if slot is not None:
            self._slots.touch(slot)
            slot.sequence = None
            sequence.slot = None
        sequence.request.running.remove(sequence)

    def _forget(self, slot: Slot) -> None:
        slot.computed = 0
        # A sequence that has only been forked into the slot goes on, and computes it all.
        slot.scores = Scores(slot.scores.k)
        if slot.sequence is not None:
            slot.sequence.prompt.cached_tokens = 0
        self._instructions.append(Trim(slot.index, 0))

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
        return sum(request.waiting for request in self._line)

    def cells(self) -> tuple[int, int, int]:
        """Cells used, active slots, resident slots."""
        states = [slot.state for slot in self._slots]
        used = sum(slot.computed for slot in self._slots)
        return used, states.count(SlotState.ACTIVE), states.count(SlotState.RESIDENT)

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        for slot in self._slots:
            sequence = slot.sequence
            if sequence is None:
                continue
            sound = (
                sequence.slot is slot
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


def _will_compute(slot: Slot) -> int:
    """How many tokens a slot will have once its sequence's prompt is computed."""
    sequence = slot.sequence
    return slot.computed if sequence is None else max(slot.computed, sequence.wanted)
