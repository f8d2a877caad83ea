"""Runs a task: several items at once, each written down when it is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from afterword.core.errors import AfterwordError, ConfigError, InvalidRequest
from afterword.evaluation.outcomes import Outcome, judge_choices, judge_text
from afterword.evaluation.state import StateFile
from afterword.evaluation.tasks import ChoiceItem, Item, Task, digest_of
from afterword.library.async_llm import AsyncLLM

AT_ONCE = 8
"""Items under way: enough to fill the batches of a server."""


async def evaluate(
    llm: AsyncLLM,
    task: Task,
    state: StateFile,
    *,
    at_once: int = AT_ONCE,
    advance: Callable[[int], object] | None = None,
) -> Sequence[Outcome]:
    """Returns the outcome of every item, in order; those in ``state`` are not computed again.

    Equal items are computed once. ``advance`` is called with the number of items that were computed
    since its last call. Raises ``ConfigError`` for an item that the model cannot take, and
    ``ApiError``.
    """
    digests = list(map(digest_of, task.items))
    counts = Counter(digests)
    first = {digest: number for number, digest in reversed(list(enumerate(digests, 1)))}
    left = iter([digest for digest in counts if digest not in state.outcomes])

    async def work() -> None:
        # All workers take from one iterator.
        for digest in left:
            number = first[digest]
            state.add(await _outcome(llm, number, task.items[number - 1]))
            if advance is not None:
                advance(counts[digest])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except* AfterwordError as errors:
        # The first one says enough; the others come of the same cause.
        raise errors.exceptions[0] from None
    return [state.outcomes[digest] for digest in digests]


async def _outcome(llm: AsyncLLM, number: int, item: Item) -> Outcome:
    try:
        if isinstance(item, ChoiceItem):
            scores = await llm.score_continuations(item.context, item.choices)
            return judge_choices(item, scores)
        answer = await llm.complete(
            item.prompt, max_tokens=item.max_tokens, temperature=0, stop=item.stops
        )
    except InvalidRequest as error:
        # The field's name in a task.
        message = error.message.replace("'stop'", "'until'")
        raise ConfigError(f"item {number}: {message}") from error
    return judge_text(item, answer.text)
