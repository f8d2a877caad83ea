"""How large an answer may become, by an estimate before anything is computed (R7)."""

from __future__ import annotations

import msgspec

from afterword.completion.prompt_text import PromptText
from afterword.completion.request import CompletionRequest
from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits

_CHOICE_BYTES = 80
_TOKEN_BYTES = 5
_POSITION_BYTES = 48
_TOP_BYTES = 28
_ID_BYTES = 7
_RANKED_BYTES = 72
"""Typical sizes in JSON: of a choice, a token's text, a position without top entries, a top entry,
an id, and an entry of vLLM's prompt log-probabilities."""
_SHORT_TEXT = 64
_HEAVIEST_FIRST = (
    "logprobs", "logprob_token_ids", "prompt_logprobs", "echo", "n", "max_tokens",
    "max_completion_tokens", "return_token_ids", "prompt",
)  # fmt: skip


class AnswerWeight:
    """The estimated size of an answer in bytes, which grows prompt by prompt (R7).

    It counts what the answer repeats of its prompts and what ``max_tokens`` asks for. Without
    ``max_tokens`` generated tokens do not count: the model ends them, and each takes a step.
    ``logprobs`` is what the answer shows, with those that only ``logprob_token_ids`` ask for.
    """

    def __init__(
        self, request: CompletionRequest, n: int, logprobs: int | None, limits: Limits
    ) -> None:
        self._request = request
        self._n = n
        self._most_bytes = limits.max_answer_mib * 2**20
        self._entry_bytes = 0
        if logprobs is not None:
            tops = logprobs + 1 + len(request.logprob_token_ids or ())
            self._entry_bytes = _POSITION_BYTES + _TOP_BYTES * tops
        self._id_bytes = _ID_BYTES if request.return_token_ids else 0
        self._prompt_bytes = self._id_bytes
        if request.prompt_logprobs is not None:
            self._prompt_bytes += _RANKED_BYTES * (request.prompt_logprobs + 1)
        self.bytes = 0

    def add(self, prompt: PromptText) -> None:
        """Count the choices of a prompt. Raises ``InvalidRequest`` over the limit."""
        request = self._request
        tokens = request.max_tokens or request.max_completion_tokens or 0
        weight = _CHOICE_BYTES + tokens * (_TOKEN_BYTES + self._entry_bytes + self._id_bytes)
        weight += len(prompt.ids) * self._prompt_bytes
        if request.echo:
            weight += _json_bytes(prompt.text) + len(prompt.ids) * self._entry_bytes
        self.bytes += self._n * weight
        if self.bytes > self._most_bytes:
            raise self._refusal()

    def _refusal(self) -> InvalidRequest:
        request = self._request
        causes: list[tuple[str, str]] = []
        if len(request.prompt) > 1:
            causes.append(("prompt", f"{len(request.prompt)} prompts"))
        if self._n > 1:
            causes.append(("n", f"n {self._n}"))
        if request.echo:
            causes.append(("echo", "echo"))
        if request.return_token_ids:
            causes.append(("return_token_ids", "return_token_ids"))
        for name in ("max_tokens", "max_completion_tokens", "logprobs", "prompt_logprobs"):
            number = getattr(request, name)
            # Log-probabilities without alternatives have a weight, no tokens have none.
            if number or (number == 0 and "logprobs" in name):
                causes.append((name, f"{name} {number}"))
        if request.logprob_token_ids:
            count = len(request.logprob_token_ids)
            causes.append(("logprob_token_ids", f"{count} logprob_token_ids"))
        name = min((name for name, _ in causes), key=_HEAVIEST_FIRST.index)
        return InvalidRequest(
            f"Invalid value for '{name}': the answer would have more than "
            f"{self._most_bytes // 2**20} MiB (max_answer_mib), because of "
            f"{', '.join(text for _, text in causes)}. Ask for it in several requests.",
            param=name,
            code="invalid_value",
        )


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) if len(text) > _SHORT_TEXT else 6 * len(text)
