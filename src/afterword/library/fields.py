"""The fields of a request as keyword arguments, with the contract's names and types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

PromptInput: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None
"""One prompt or several, each text or token ids (R2). None is the start of a new document."""


class InfillFields(TypedDict, total=False):
    """Everything that a request may say besides prompt and suffix (R4 to R17). None is the default.

    ``docs/contract.md`` says what each field means. Values are checked as those of a request over
    HTTP are, with the same errors.
    """

    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    best_of: int | None
    stream_options: Mapping[str, bool] | None
    logprobs: int | bool | None
    echo: bool | None
    stop: str | Sequence[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | Mapping[int, float] | None
    seed: int | None
    user: str | None
    top_k: int | None
    min_p: float | None
    min_tokens: int | None
    ignore_eos: bool | None
    max_completion_tokens: int | None
    repetition_penalty: float | None
    repetition_penalty_range: int | None
    typical_p: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None
    allowed_token_ids: Sequence[int] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool | None
    skip_special_tokens: bool | None
    add_special_tokens: bool | None
    truncate_prompt_tokens: int | None
    logprob_token_ids: Sequence[int] | None
    prompt_logprobs: int | None
    return_token_ids: bool | None
    return_tokens_as_token_ids: bool | None
    cache_salt: str | None


class CompletionFields(InfillFields, total=False):
    """Everything that a request may say besides its prompt."""

    suffix: str | None
