"""Runs a task: several items at once, each written down when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from afterword.core.errors import AfterwordError, ConfigError, InvalidRequest
from afterword.evaluation.outcomes import Outcome, judge_choices, judge_text
from afterword.evaluation.state import StateFile
from afterword.evaluation.tasks import ChoiceItem, Item, Task
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

    ``advance`` is called with the number of items that were computed since its last call. Raises
    ``ConfigError`` for an item that the model cannot take, and ``ApiError``.
    """
    items = list(enumerate(task.items))
    left = iter([(index, item) for index, item in items if index not in state.outcomes])

    async def work() -> None:
        # All workers take from one iterator.
        for index, item in left:
            state.add(await _outcome(llm, index, item))
            if advance is not None:
                advance(1)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except* AfterwordError as errors:
        # The first one says enough; the others come of the same cause.
        raise errors.exceptions[0] from None
    return [state.outcomes[i] for i in range(len(task.items))]


async def _outcome(llm: AsyncLLM, index: int, item: Item) -> Outcome:
    try:
        if isinstance(item, ChoiceItem):
            scores = await llm.score_continuations(item.context, item.choices)
            return judge_choices(index, item, scores)
        answer = await llm.complete(
            item.prompt, max_tokens=item.max_tokens, temperature=0, stop=item.stops
        )
    except InvalidRequest as error:
        raise ConfigError(f"item {index + 1}: {error.message}") from error
    return judge_text(index, item, answer.text)
