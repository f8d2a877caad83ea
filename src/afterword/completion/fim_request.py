"""The body of ``POST /v1/fim/completions``: Mistral's request as a completion request (F5)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from afterword.completion import fields
from afterword.completion.bodies import parse_object
from afterword.completion.fields import Json, Parser, Schema
from afterword.completion.request import (
    CompletionRequest,
    parse_fields,
    parsers,
    schema,
    with_model,
)
from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits

_SEED = "random_seed"
_NOT_IN_CHAT = (
    "echo", "logprobs", "logprob_token_ids", "prompt_logprobs", "return_token_ids",
    "return_tokens_as_token_ids",
)  # fmt: skip
"""Fields whose answers have no place in chat's shape."""


@lru_cache
def _parsers(limits: Limits) -> Mapping[str, Parser]:
    found = dict(parsers(limits))
    return {
        **{name: _refused if name in _NOT_IN_CHAT else parse for name, parse in found.items()},
        "prompt": lambda name, value: (fields.STRING.parse(name, value),),
        _SEED: found["seed"],
    }


def decode_fim(body: bytes, limits: Limits) -> CompletionRequest:
    """Returns the completion request that a body asks for. Raises ``InvalidRequest``."""
    table = _parsers(limits)
    raw = parse_object(body, table)
    parsed = parse_fields(raw, table)
    if "prompt" not in parsed:
        raise InvalidRequest("you must provide a prompt parameter", param="prompt")
    if _SEED in parsed:
        if "seed" in parsed:
            raise InvalidRequest(
                f"'{_SEED}' and 'seed' are two names of one seed: give one of them.", param=_SEED
            )
        parsed["seed"] = parsed.pop(_SEED)
    return CompletionRequest(**with_model(parsed, limits))


def fim_schema(limits: Limits) -> Schema:
    """Returns the JSON Schema of a body under the operator's limits."""
    found = schema(limits)
    properties = found["properties"]
    for name in _NOT_IN_CHAT:
        properties[name] = {"enum": [False, None], "description": "The answer has no place for it."}
    properties["prompt"] = {"type": "string", "description": "The text before the middle."}
    properties[_SEED] = {**properties["seed"], "description": "Mistral's name of seed."}
    found["required"] = [*found["required"], "prompt"]
    found["description"] = "A request for the text between prompt and suffix."
    return found


def _refused(name: str, value: Json) -> None:
    # False asks for nothing.
    if value is not False:
        reason = "the answer in chat's shape has no place for it. Use POST /v1/completions."
        raise fields.not_offered(name, reason)
