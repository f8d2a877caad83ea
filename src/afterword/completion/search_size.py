"""How much a search for a middle may compute, and what it refuses for that (F3)."""

from __future__ import annotations

import msgspec

from afterword.completion.context_budget import ContextBudget
from afterword.completion.joints import SUFFIX_TOKENS
from afterword.completion.openings import SHOWN_TOKENS
from afterword.completion.prompt_text import PromptText
from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.core.limits import Limits
from afterword.core.protocols import PrefixSharing

CANDIDATES = 18
"""How many candidates are drawn for a prompt, if the limit on tokens allows."""
PLACES = 64
"""The most places of a prompt's candidates that are scored."""
MIDDLE_TOKENS = 48
"""The longest middle of a request without ``max_tokens``."""
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


def refuse_broken(prompt: PromptText) -> None:
    """Raises ``InvalidRequest`` for a prompt of token ids that ends inside a character.

    Middles are texts, and no text completes the character.
    """
    if prompt.dangling:
        raise InvalidRequest(
            "Invalid value for 'prompt': its token ids end inside a character. This model has no "
            "fill-in-the-middle tokens, and a search for a middle begins with a whole character.",
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
    if n > PLACES:
        raise InvalidRequest(
            f"Invalid value for 'n': this model has no fill-in-the-middle tokens. A search for a "
            f"middle looks at {PLACES} places, so it cannot show {n}.",
            param="n",
            code="invalid_value",
        )
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
