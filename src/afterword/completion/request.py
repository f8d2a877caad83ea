"""From the bytes of a body to a request in which every field has its type and is in its range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

import msgspec

from afterword.completion import fields
from afterword.completion.fields import Json, Parser, Prompt
from afterword.core.errors import InvalidRequest
from afterword.core.limits import MOST_USER_CHARACTERS, Limits

_INT64 = 2**63
_UNPARSABLE = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was "
    "not valid JSON.)"
)


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it was sent; None is "not given". Fields and ranges are the contract's R1-R17.

    ``prompt`` is empty where none was given, ``model`` where the server may choose one.
    """

    model: str | None = None
    prompt: tuple[Prompt, ...] = ()
    suffix: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    stream: bool | None = None
    stream_options: Mapping[str, bool] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    stop: tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    seed: int | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None


@lru_cache
def parsers(limits: Limits) -> Mapping[str, Parser]:
    """The parser of each field, with the operator's limits."""
    count = fields.integer(0, _INT64 - 1)
    penalty = fields.number(-2, 2)
    return {
        "model": fields.string,
        "prompt": fields.prompts(limits.max_prompts),
        "suffix": fields.string,
        "max_tokens": count,
        "temperature": fields.number(0, 2),
        "top_p": fields.number(0, 1),
        "n": fields.integer(1, limits.max_n),
        "best_of": fields.integer(0, limits.max_best_of),
        "stream": fields.boolean,
        "stream_options": fields.stream_options,
        "logprobs": fields.log_probabilities(limits.max_logprobs),
        "echo": fields.boolean,
        "stop": fields.stop_strings(limits.max_stops),
        "presence_penalty": penalty,
        "frequency_penalty": penalty,
        "logit_bias": fields.logit_bias,
        "seed": fields.integer(-_INT64, _INT64 - 1),
        "user": fields.recorded(MOST_USER_CHARACTERS),
        "top_k": fields.integer(-1, _INT64 - 1),
        "min_p": fields.number(0, 1),
        "min_tokens": count,
        "ignore_eos": fields.boolean,
    }


def decode(body: bytes, limits: Limits, *, model: str | None = None) -> CompletionRequest:
    """Parse a body; ``model`` is the one that the path names, if it does.

    Raises ``InvalidRequest``.
    """
    table = parsers(limits)
    raw = parse_object(body, table)
    parsed: dict[str, Any] = {}
    for name, value in raw.items():
        parser = table.get(name)
        if parser is None:
            raise fields.unrecognized(name)
        if value is not None:
            parsed[name] = parser(name, value)
    if model is not None:
        parsed["model"] = model
    if not parsed.get("model"):
        if limits.require_model:
            raise InvalidRequest("you must provide a model parameter", param="model")
        parsed["model"] = None
    return CompletionRequest(**parsed)


def parse_object(body: bytes, known: Mapping[str, Parser]) -> dict[str, Json]:
    """A JSON object, or H2; a key given twice is refused, since one of the two would be ignored."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(_UNPARSABLE) from None
    if not isinstance(raw, dict):
        raise InvalidRequest(_UNPARSABLE)
    if _may_repeat(body, {name.encode() for name in known}):
        _refuse_duplicates(body)
    bias = raw.get("logit_bias")
    if isinstance(bias, dict):
        _refuse_duplicate_ids(body, bias)
    return raw


def _may_repeat(body: bytes, known: AbstractSet[bytes]) -> bool:
    """Whether a known key could stand twice, by a look that is cheap for long bodies."""
    if b"\\" in body:
        return b"\\u" in body or any(body.count(b'"%b"' % name) > 1 for name in known)
    # Without escapes every second part between quotes is a string.
    names = [string for string in body.split(b'"')[1::2] if string in known]
    return len(names) > len(set(names))


def _refuse_duplicate_ids(body: bytes, bias: Mapping[str, Json]) -> None:
    """An id given twice leaves one key less than there are colons."""
    written = msgspec.json.decode(body, type=dict[str, msgspec.Raw])["logit_bias"]
    if bytes(written).count(b":") > len(bias) and all(map(str.isdigit, bias)):
        raise InvalidRequest(
            "Duplicate request argument supplied: an id of 'logit_bias'", param="logit_bias"
        )


def _refuse_duplicates(body: bytes) -> None:
    depth_first: list[list[tuple[str, Json]]] = []

    def keep(pairs: list[tuple[str, Json]]) -> None:
        depth_first.append(pairs)

    try:
        json.loads(body, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        raise InvalidRequest(_UNPARSABLE) from None
    for pairs in depth_first:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                short = name[:40]
                raise InvalidRequest(f"Duplicate request argument supplied: {short}", param=short)
            seen.add(name)
