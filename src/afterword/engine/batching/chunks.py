"""Chooses the tokens of the running sequences that a step computes."""

from __future__ import annotations

from collections.abc import Iterable

from afterword.engine.batching.sequence import Sequence
from afterword.engine.batching.slots import Slot
from afterword.engine.batching.step import Span


def choose_spans(
    running: Iterable[tuple[Slot, Sequence]],
    *,
    drafted: int,
    budget_tokens: int,
    most_tokens: int,
    most_rows: int,
) -> list[Span]:
    """Returns every row that decodes and up to ``budget_tokens`` of prefill, ordered by slot.

    Each row that decodes is followed by ``drafted`` tokens of a draft, taken from the slot. Half
    of the budget goes to the prompt that has waited longest, the rest to the shortest first: no
    prompt is stuck behind a long one, and a long one still advances.
    """
    spans: list[Span] = []
    prefilling: dict[Slot, Sequence] = {}
    for slot, sequence in running:
        if sequence.decodes(slot.computed):
            tokens = 1 + drafted
            start = slot.computed
            spans.append(
                Span(
                    sequence, slot, start, tokens, tokens,
                    samples=True, drafted=drafted, decodes=True,
                )
            )  # fmt: skip
        else:
            prefilling[slot] = sequence
    if prefilling:
        budget_tokens = min(budget_tokens, most_tokens - len(spans))
        rows = most_rows - len(spans)
        for slot, tokens in _share(list(prefilling), budget_tokens):
            span = _prefill_span(slot, prefilling[slot], tokens, rows)
            if span is not None:
                spans.append(span)
                rows -= span.rows
    # Runners want slots in order.
    spans.sort(key=lambda span: span.slot.index)
    return spans


def _share(prefilling: list[Slot], budget_tokens: int) -> list[tuple[Slot, int]]:
    """Returns the tokens of each slot, the oldest slot first so that it gets rows first."""
    left = {slot.index: slot.will_compute - slot.computed for slot in prefilling}
    oldest = min(prefilling, key=lambda slot: slot.last_used)
    share = dict.fromkeys(left, 0)
    share[oldest.index] = min(left[oldest.index], max(budget_tokens // 2, 1))
    budget_tokens -= share[oldest.index]
    for slot in sorted(prefilling, key=lambda slot: (left[slot.index], slot.last_used)):
        more = min(left[slot.index] - share[slot.index], budget_tokens)
        share[slot.index] += more
        budget_tokens -= more
    prefilling.sort(key=lambda slot: slot is not oldest)
    return [(slot, share[slot.index]) for slot in prefilling]


def _prefill_span(slot: Slot, sequence: Sequence, tokens: int, most_rows: int) -> Span | None:
    if tokens <= 0 or most_rows <= 0:
        return None
    start = slot.computed
    unread = max(0, sequence.first_row - start)
    end = start + min(tokens, unread + most_rows)
    if sequence.cuts:
        end = min(end, sequence.cuts[0])
    samples = end == sequence.length
    rows = max(0, end - start - unread)
    return Span(sequence, slot, start, end - start, rows, samples=samples)
