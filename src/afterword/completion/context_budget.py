"""How many tokens of a context a prompt and its completion may have (H12)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from afterword.completion.encoding import least_tokens
from afterword.completion.id_fields import Prompt
from afterword.core.errors import ContextLengthExceeded
from afterword.core.limits import Limits
from afterword.core.protocols import Tokenizer

_CUT_CONTEXTS = 16
"""How many contexts a prompt may be long that is cut to its end."""


class ContextBudget(msgspec.Struct, frozen=True):
    """The context, and the limits on how much a request may generate."""

    context_tokens: int
    limits: Limits

    def refuse_endless(
        self, prompt: Prompt, tokenizer: Tokenizer, asked: int | None, *, cut: bool = False
    ) -> None:
        """Raises ``ContextLengthExceeded`` if no tokenisation of the prompt can fit (H12).

        A prompt that will be ``cut`` may be several times as long.
        """
        least = least_tokens(prompt, tokenizer)
        if least > self.context_tokens * (_CUT_CONTEXTS if cut else 1):
            raise ContextLengthExceeded(
                context=self.context_tokens, prompt=least, completion=asked or 0
            )

    def fitting(
        self, texts: Iterable[tuple[str, bool]], tokenizer: Tokenizer, *, cut: bool = False
    ) -> list[tuple[str, bool]]:
        """Returns the texts that ``refuse_endless`` lets through."""
        most = self.context_tokens * (_CUT_CONTEXTS if cut else 1)
        return [text for text in texts if least_tokens(text[0], tokenizer) <= most]

    def room(self, asked: int | None) -> int:
        """Returns how many prompt tokens leave room for the completion."""
        wanted = (self.limits.default_max_tokens or 1) if asked is None else asked
        return max(self.context_tokens - wanted, 0)

    def completion_tokens(self, prompt_tokens: int, asked: int | None) -> int:
        """Returns how many tokens may be generated. Raises ``ContextLengthExceeded``."""
        left = self.context_tokens - prompt_tokens
        if asked is None:
            if left < 1:
                raise ContextLengthExceeded(
                    context=self.context_tokens, prompt=prompt_tokens, completion=1
                )
            default = self.limits.default_max_tokens
            return left if default is None else min(left, default)
        if asked > left:
            raise ContextLengthExceeded(
                context=self.context_tokens, prompt=prompt_tokens, completion=asked
            )
        return asked
