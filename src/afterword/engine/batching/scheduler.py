"""Decides the next step, and updates sequences with its outcomes.

There is no prefill phase and no decode phase: *computed* catches up with *length*. The scheduler
is pure (no clock, no thread, no model library), so the same calls give the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from afterword.core.job import Ended, Event, FinishReason, Job, Prefilled
from afterword.engine.batching.chunks import choose_spans
from afterword.engine.batching.counters import Counters
from afterword.engine.batching.drafts import MOST_SEQUENCES, learn, make_drafts
from afterword.engine.batching.line import FairLine
from afterword.engine.batching.memory import Memory, Wait
from afterword.engine.batching.outcome import Outcome, PromptScore, SampledToken, sampled_event
from afterword.engine.batching.prefix_cache import Match
from afterword.engine.batching.runner import ModelRunner
from afterword.engine.batching.sequence import Prompt, Request, Sequence, State
from afterword.engine.batching.slots import Slot, Slots, Source
from afterword.engine.batching.step import Step, make_batch
from afterword.engine.row_query import RowError

_LOOK_AHEAD = 64
"""How many waiting sequences of a request are searched for one that can start now."""
_FEW_SLOTS = 4
_ANSWERS_COST = 128
_SCORES_COST = 1 / 512
"""What a step may spend on sequences that need no slot: 1 for each, and a part for each score."""


def kept_slots(slots: int) -> int:
    """Returns how many slots to add to ``slots`` for requests that do not have one yet.

    Returns 0 if there are fewer than four, because an extra one would take too much memory.
    """
    return int(slots >= _FEW_SLOTS)


class Scheduler:
    """Holds requests in a fair line and sequences in slots, and plans the next step.

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
        self._slots = Slots(runner.slots, runner.sequences)
        self._memory = Memory(
            runner,
            self._slots,
            score_budget_bytes=score_budget_bytes,
            checkpoint_budget_bytes=checkpoint_budget_bytes,
        )
        self._kept_slots = kept_slots(runner.sequences - 1)
        self._max_batch_tokens = runner.max_batch_tokens
        self._max_rows = runner.max_rows
        self._end_ids = end_ids
        self._requests: dict[int, Request] = {}
        self._line = FairLine()
        self._waits: dict[Sequence, Wait] = {}
        # The request that memory was too short for. Nobody starts before it.
        self._starved: Request | None = None
        self._events: list[tuple[int, Event]] = []
        self._failures: list[tuple[int, RowError]] = []
        self._now_s = 0.0
        self._answering = 0.0
        self.counters = Counters()

    # Commands of the worker.

    def add(self, key: int, jobs: SequenceOf[Job], *, now_s: float = 0.0) -> None:
        """Put the jobs of one request at the end of the line.

        If sharing is "none" and the scheduler is idle, all slots are reset first, so that the
        request computes exactly as on a fresh server.
        """
        if self.idle and self._memory.sharing == "none":
            self._memory.start_afresh()
        request = Request(key, jobs, self._end_ids, now_s)
        self._requests[key] = request
        self._line.join(request)

    def abort(self, key: int, job: int, sibling: int) -> None:
        """End one sequence without an event. Unknown ones have ended already."""
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
        """Returns the requests that failed since the last call, each with its error."""
        failures, self._failures = self._failures, []
        return failures

    def take_events(self) -> list[tuple[int, Event]]:
        """Returns the events since the last call, each with its request's key."""
        events, self._events = self._events, []
        return events

    def ended(self, key: int) -> bool:
        """Whether all sequences of a request have ended."""
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
        """Returns the next step: every row that decodes, then up to ``budget_tokens`` of prefill.

        Returns None if there is nothing to compute; there may still be events. ``row_share`` is
        the cost of a row relative to a token (see ``drafts.StepCost``); None turns drafts off.
        ``now_s`` is used to count waiting times only.
        """
        self._now_s = now_s
        self._memory.keep_states()
        self._place()
        self._find_room()
        drafted = 0 if row_share is None else self._draft(row_share)
        spans = choose_spans(
            self._slots.running,
            drafted=drafted,
            budget_tokens=budget_tokens,
            most_tokens=self._max_batch_tokens,
            most_rows=self._max_rows,
        )
        if not spans:
            # Instructions stay queued and reach the runner before the next batch.
            return None
        self._memory.make_room(spans)
        return Step(self._memory.take_instructions(), spans, make_batch(spans))

    def update(self, step: Step, outcomes: SequenceOf[Outcome]) -> None:
        """Update sequences with the outcomes of a step, one for each span."""
        self.counters.count_step(len(step.spans))
        for span, outcome in zip(step.spans, outcomes, strict=True):
            sequence, slot = span.sequence, span.slot
            if sequence.state is not State.RUNNING:
                # Another sequence of the request failed earlier in this step.
                self._memory.trim(slot, slot.computed)
                continue
            refuted = span.drafted and span.drafted + 1 - max(len(outcome.drawn), 1)
            slot.computed = span.start + span.tokens
            if refuted:
                self._memory.trim(slot, slot.computed - refuted)
            if span.decodes:
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
        """End the requests in a step whose decode failed, and return their keys.

        The KV of their slots is dropped. Other requests, resident slots and the line go on.
        """
        keys = list(dict.fromkeys(span.sequence.request.key for span in step.spans))
        for key in keys:
            self.abort_request(key)
        self._memory.forget_failed((span.slot.index for span in step.spans), step.instructions)
        return keys

    def _draft(self, row_share: float) -> int:
        """Write drafts into the slots of all running sequences.

        Returns how many tokens each sequence got; 0 if there are too many sequences or one of
        them still prefills. Only sharing "cells" allows drafts: with "checkpoints" a rejected
        draft could not be trimmed, and with "none" a row may depend on the rest of the batch.
        Where memory is short, drafts are shorter, so they never preempt a sequence.
        """
        running = self._slots.running
        if self._memory.sharing != "cells" or not 0 < len(running) <= MOST_SEQUENCES:
            return 0
        if not all(sequence.decodes(slot.computed) for slot, sequence in running):
            return 0
        most = min(self._max_batch_tokens, self._max_rows) // len(running) - 1
        drafted = min(make_drafts(running, row_share), most)
        drafted = self._memory.extend_all(running, 1 + drafted) - 1
        for slot, sequence in running:
            start = sequence.length
            slot.tokens[start : start + drafted] = sequence.draft.tokens[:drafted]
        return drafted

    # Slots and the line.

    def _place(self) -> None:
        """Give idle slots to waiting sequences: one for each request in turn, oldest first.

        The last idle slot is kept for a request that has none, so that a request with many long
        sequences cannot keep others from their first slot.
        """

        def place(request: Request) -> bool:
            barred = bool(request.running) and self._slots.left <= self._kept_slots
            return not barred and self._place_one(request)

        def has_room() -> bool:
            return (
                self._answering < _ANSWERS_COST and self._slots.left > 0 and self._starved is None
            )

        self._answering = 0.0
        starved, self._starved = self._starved, None
        if starved is not None and starved in self._line:
            place(starved)
            if not starved.waiting:
                self._line.leave(starved)
        self._line.serve(has_room, place)

    def _place_one(self, request: Request) -> bool:
        """Start the first sequence of the request that can start now; False if there is none."""
        head = request.look_ahead(_LOOK_AHEAD)
        for at, sequence in enumerate(head):
            pending = self._waits.get(sequence)
            if pending is not None and not pending.over():
                continue
            scope = sequence.prompt.job.cache_scope
            match = self._memory.cache.match(sequence.ids, scope)
            source = self._memory.source(sequence, match)
            if sequence.answered or _is_warm(sequence, source):
                self._answer(sequence)
                return True
            wait = self._memory.worth_waiting_for(sequence, match, source)
            if wait is not None:
                self._stop_waiting(sequence)
                self._waits[sequence] = wait
                wait.slot.awaited += 1
                continue
            # An awaited slot goes to those that wait for it, unless this request has no slot yet.
            slot = self._slots.victim(source, over_awaited=not request.running)
            if slot is None or not self._may_start(sequence, source):
                if sequence.generated:
                    # Its siblings would take the memory that it waits for.
                    return False
                continue
            self._stop_waiting(sequence)
            del head[at]
            self._start(sequence, slot, source, match)
            return True
        return False

    def _find_room(self) -> None:
        """Make room for the token that each row that decodes adds.

        While there is too little, a sequence is preempted: one of the request with most of them,
        the one that started last.
        """
        for slot, sequence in self._slots.running:
            most = slot.computed + 1
            if most <= slot.room or not sequence.decodes(slot.computed):
                continue
            # The sequence itself may be the one that is preempted.
            while sequence.state is State.RUNNING:
                if self._memory.extend(slot, sequence, most):
                    break
                self._preempt()

    def _preempt(self) -> None:
        """Take the memory of a sequence that decodes; it goes on when there is some again."""
        latest_first = reversed(self._slots.running)
        decoding = [one for one in latest_first if one[1].decodes(one[0].computed)]
        slot, sequence = max(decoding, key=lambda one: len(one[1].request.running))
        sequence.preempt(slot.tokens[: sequence.length].copy())
        self._leave(sequence)
        sequence.request.head.appendleft(sequence)
        self._line.rejoin(sequence.request)
        self.counters.preemptions += 1

    def _may_start(self, sequence: Sequence, source: Source | None) -> bool:
        """Whether there is memory for a sequence.

        A request that gets none at all is the next to get some: else shorter ones that come later
        could keep it waiting for ever.
        """
        if self._memory.admits(sequence, source):
            return True
        if not sequence.request.running:
            self._starved = sequence.request
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
        """End a sequence without a slot, because all its scores are known already."""
        prompt = sequence.prompt
        self._answering += 1
        if prompt.scores is not None:
            self._answering += len(prompt.ids) * (prompt.scores.k + 1) * _SCORES_COST
        self._stop_waiting(sequence)
        self._count_wait(sequence.request)
        if prompt.scores is not None and sequence.wanted:
            self._count_cached(prompt, len(prompt.ids))
        elif prompt.job.warm:
            self._count_cached(prompt, sequence.wanted)
        self._announce(sequence)
        self._finish(sequence, "length")

    def _count_wait(self, request: Request) -> None:
        if not request.started:
            request.started = True
            self.counters.started_requests += 1
            self.counters.waited_s += self._now_s - request.added_s

    def _count_cached(self, prompt: Prompt, tokens: int) -> None:
        """Count cached tokens for the first sibling only: usage counts a prompt once (A5).

        What a later one finds in the cache may be the work of the first.
        """
        if prompt.cached_tokens is None:
            self.counters.cached_tokens += tokens
            prompt.cached_tokens = tokens

    # Progress of sequences.

    def _learn(self, prompt: Prompt, found: SequenceOf[PromptScore]) -> None:
        """Record the scores of a prompt's tokens, and pass them to its followers."""
        scores = prompt.scores
        if scores is None:
            raise AssertionError("scores found for a prompt that wants none")
        for entry in found:
            scores.put(entry.position, entry.score)
            for follower, logprob in entry.branches:
                if follower.scores is not None:
                    follower.scores.take(scores.part(0, entry.position), 0)
                    follower.scores.put(entry.position, entry.score.of_another(logprob))
            prompt.followers.pop(entry.position, None)
        if self._memory.sharing != "none" and scores.shared:
            self._memory.cache.keep(prompt.ids, scores, prompt.job.cache_scope)

    def _announce(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        if prompt.announced:
            return
        prompt.announced = True
        scored = None if prompt.scores is None else prompt.scores.scored_prompt()
        event = Prefilled(prompt.index, len(prompt.ids), prompt.cached_tokens or 0, scored)
        self._events.append((sequence.request.key, event))

    def _extend(self, sequence: Sequence, slot: Slot, drawn: SequenceOf[SampledToken]) -> None:
        key, history = sequence.request.key, sequence.history
        for one in drawn:
            sequence.generated += 1
            self.counters.generated_tokens += 1
            if history is not None:
                history.accept(one.token)
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
        """Forget a request that has ended; take it out of the line if nothing waits."""
        if not request.left:
            self._requests.pop(request.key, None)
        if not request.waiting:
            self._line.leave(request)

    def _leave(self, sequence: Sequence) -> None:
        self._memory.leave(sequence)
        sequence.request.running.remove(sequence)

    # Figures for the worker.

    @property
    def decoding(self) -> bool:
        """Whether a running sequence generates, so that a client waits for its next token."""
        return any(sequence.generated for _, sequence in self._slots.running)

    @property
    def running(self) -> int:
        """Sequences that have a slot."""
        return self._slots.counts[0]

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return self._line.waiting

    @property
    def waiting_since_s(self) -> float | None:
        """When the oldest request that has not started arrived, in seconds; None if none waits."""
        return self._line.waiting_since_s

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores that are kept for later prompts."""
        return self._memory.cache.score_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoints that are kept for later prompts."""
        return self._memory.checkpoint_bytes

    def cells(self) -> tuple[int, int, int]:
        """Returns the numbers of used cells, active slots and resident slots."""
        return self._memory.used_tokens, *self._slots.counts

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
                and 0 <= slot.computed <= sequence.length <= sequence.limit == len(slot.tokens)
            )
            if not sound:
                raise AssertionError(f"slot {slot.index} and its sequence disagree")
        for request in self._requests.values():
            slots = [sequence.slot for sequence in request.running]
            if None in slots or (request.waiting > 0) != (request in self._line):
                raise AssertionError(f"request {request.key} is neither running nor waiting")


def _is_warm(sequence: Sequence, source: Source | None) -> bool:
    """Whether a prompt that is computed for later ones is in the cache already."""
    prompt = sequence.prompt
    warms = prompt.job.warm and not prompt.generates
    return warms and source is not None and source.tokens >= sequence.wanted
