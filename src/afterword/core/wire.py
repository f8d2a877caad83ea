"""The JSON shapes of the answers. Field order is the order on the wire."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from afterword.core.job import FinishReason
from afterword.core.protocols import InfillTokens

LOWEST = -9999.0
"""Stands for minus infinity, and for other numbers that JSON does not have (L7)."""


class Logprobs(msgspec.Struct, frozen=True):
    """Four arrays of one length (L1)."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True):
    """A token at a position of the prompt, in vLLM's shape. The likeliest token has rank 1."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs: TypeAlias = Mapping[int, PromptLogprob]
"""The prompt's token at a position, and the likeliest ones, by id."""
read_prompt_logprobs = msgspec.json.Decoder(list[PromptLogprobs | None]).decode
"""Returns the entries of a choice's ``prompt_logprobs``."""


class Choice(msgspec.Struct, frozen=True):
    """One choice of an answer, or what a chunk adds to it.

    The last three are there if the request asks for them. ``prompt_token_ids`` and
    ``prompt_logprobs`` are in the first chunk of a choice. The latter are JSON already, because
    they are long and the same in all choices of a prompt; see ``read_prompt_logprobs``.
    """

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How many prompt tokens came from the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a whole request (A5)."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class InfillReport(msgspec.Struct, frozen=True):
    """How the middles of an answer were found, if not by fill-in-the-middle tokens (F3).

    ``places`` in the text of ``candidates`` were looked at, and ``scored`` with the suffix.
    ``cut_by_time``: the search ended early, so the same request may find another middle.
    """

    found_by: Literal["search"]
    candidates: int
    places: int
    scored: int
    cut_by_time: bool


class Completion(msgspec.Struct, frozen=True, tag_field="object", tag="text_completion"):
    """A whole answer (A1, A2). ``infill`` is there if a search found the middles (F3)."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    infill: InfillReport | msgspec.UnsetType = msgspec.UNSET


class Chunk(msgspec.Struct, frozen=True, tag_field="object", tag="text_completion"):
    """One event of a stream. ``usage`` is absent without ``include_usage`` (S5)."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    obfuscation: str | msgspec.UnsetType = msgspec.UNSET
    infill: InfillReport | msgspec.UnsetType = msgspec.UNSET


class Vocabulary(msgspec.Struct, frozen=True):
    """A whole vocabulary, for a server in front of this one. Pieces are base64 in JSON."""

    pieces: list[bytes]
    special_ids: list[int]
    end_ids: list[int]
    document_start_id: int
    bos_id: int | None
    roles: Mapping[str, int]
    infill: InfillTokens | None
    space_after: list[int] | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The inside of an error envelope. All four keys are always there (H1)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every error answer (H1)."""

    error: ErrorBody


class Model(msgspec.Struct, frozen=True, tag_field="object", tag="model"):
    """A served model. ``afterword`` has what OpenAI's shape has no place for.

    ``max_model_len`` is vLLM's name of the context's size in tokens.
    """

    id: str
    created: int
    owned_by: str
    max_model_len: int
    afterword: Mapping[str, str | int | bool | None]


class ModelList(msgspec.Struct, frozen=True, tag_field="object", tag="list"):
    """All served models."""

    data: list[Model]
