"""Parses a body into a request in which every field has its type and is in its range."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from afterword.completion import fields, foreign, id_fields
from afterword.completion.bodies import parse_object
from afterword.completion.fields import Field, Json, Parser, Schema
from afterword.completion.id_fields import Prompt
from afterword.completion.structured import RESPONSE_FORMAT, STRUCTURED_OUTPUTS
from afterword.core.errors import InvalidRequest
from afterword.core.job import OutputGrammar
from afterword.core.limits import (
    MOST_BREAKER_CHARACTERS,
    MOST_BREAKERS,
    MOST_SCORED_IDS,
    MOST_STOP_IDS,
    MOST_USER_CHARACTERS,
    Limits,
)

BREAKERS = ("\n", ":", '"', "*")
"""The usual ``dry_sequence_breakers``; source: llama.cpp."""
_MOST = fields.INT64 - 1
_PENALTY = fields.number(-2, 2)
_STREAM_OPTIONS = fields.switches(
    {
        "include_usage": "One more chunk at the end has the usage.",
        "include_obfuscation": "Chunks have padding that hides the length of their text.",
        "continuous_usage_stats": "Each chunk has the usage of its own choice so far. Needs "
        "include_usage.",
    }
)


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it was sent, and the declaration of each field (R1 to R17).

    None means "not given". ``prompt`` is empty if none was given.
    """

    model: Annotated[
        str | None, Field(fields.STRING, "The name or an alias of a served model.")
    ] = None
    prompt: Annotated[
        tuple[Prompt, ...],
        Field(
            lambda limits: id_fields.prompts(limits.max_prompts),
            "One prompt or an array of them, each text or token ids. Null, an absent prompt and "
            "empty text mean the start of a new document.",
        ),
    ] = ()
    suffix: Annotated[
        str | None,
        Field(fields.STRING, "The text after the completion: the model fills in the middle."),
    ] = None
    max_tokens: Annotated[
        int | None,
        Field(
            # Other servers take -1 for no limit.
            fields.integer(0, _MOST, hint=" (leave it out for no limit)"),
            "The most tokens to generate; 0 generates none. Without a limit, the model or a full "
            "context ends the completion.",
            lambda limits: limits.default_max_tokens,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Field(
            fields.number(0, 2),
            "How random draws are. 0 always takes the likeliest token.",
            1,
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Field(
            fields.number(0, 1),
            "Draw from the fewest likeliest tokens whose probabilities add up to this. 0 keeps one "
            "token.",
            1,
        ),
    ] = None
    n: Annotated[
        int | None,
        Field(
            lambda limits: fields.integer(1, limits.max_n),
            "The number of choices for each prompt.",
            1,
        ),
    ] = None
    best_of: Annotated[
        int | None,
        Field(
            lambda limits: fields.integer(0, limits.max_best_of),
            "The number of candidates for each prompt; the n likeliest are returned. 0 means n.",
        ),
    ] = None
    stream: Annotated[
        bool | None,
        Field(fields.BOOLEAN, "Send the answer in chunks as it is generated.", False),  # noqa: FBT003 - the default
    ] = None
    stream_options: Annotated[
        Mapping[str, bool] | None,
        Field(_STREAM_OPTIONS, "Options of a stream, allowed only with stream."),
    ] = None
    logprobs: Annotated[
        int | None,
        Field(
            lambda limits: fields.log_probabilities(limits.max_logprobs),
            "Return log-probabilities of the chosen token and of this many likeliest tokens. true "
            "means 0, false means none.",
        ),
    ] = None
    echo: Annotated[
        bool | None,
        Field(fields.BOOLEAN, "Put the prompt before the completion.", False),  # noqa: FBT003 - the default
    ] = None
    stop: Annotated[
        tuple[str, ...] | None,
        Field(
            lambda limits: fields.stop_strings(limits.max_stops),
            "A string or several that end a choice. They are not part of its text.",
        ),
    ] = None
    presence_penalty: Annotated[
        float | None,
        Field(_PENALTY, "Subtracted once from the logit of each token that was generated.", 0),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Field(_PENALTY, "Subtracted from a token's logit for each time that it was generated.", 0),
    ] = None
    logit_bias: Annotated[
        tuple[tuple[int, float], ...] | None,
        Field(
            fields.LOGIT_BIAS,
            "Numbers to add to the logits of tokens, by token id. -100 bans a token.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            fields.integer(-fields.INT64, _MOST),
            "Makes draws repeatable: the same seed draws the same tokens, if all else is the same.",
        ),
    ] = None
    user: Annotated[
        str | None,
        Field(
            fields.recorded(MOST_USER_CHARACTERS),
            "The name of the end user, recorded with the usage. It has no null characters.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Field(
            fields.integer(-1, _MOST), "Draw from this many likeliest tokens. 0 and -1 mean all.", 0
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Field(
            fields.number(0, 1),
            "Draw from tokens with at least this share of the likeliest token's probability.",
            0,
        ),
    ] = None
    min_tokens: Annotated[
        int | None,
        Field(
            fields.integer(0, _MOST),
            "Neither an end token nor a stop string ends a choice before this many tokens.",
            0,
        ),
    ] = None
    ignore_eos: Annotated[
        bool | None,
        Field(fields.BOOLEAN, "Go on after end tokens.", False),  # noqa: FBT003 - the default
    ] = None
    max_completion_tokens: Annotated[
        int | None, Field(fields.integer(0, _MOST), "Another name of max_tokens; not both.")
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(
            fields.number(0.01, 100),
            "Divides positive and multiplies negative logits of tokens that the prompt or the "
            "choice has. 1 is off.",
            1,
        ),
    ] = None
    repetition_penalty_range: Annotated[
        int | None,
        Field(
            fields.integer(-1, _MOST),
            "How many tokens at the end of prompt and choice repetition_penalty sees. 0 and -1 "
            "mean all.",
            0,
        ),
    ] = None
    typical_p: Annotated[
        float | None,
        Field(
            fields.number(0, 1),
            "Draw from the most typical tokens whose probabilities add up to more than this. 1 is "
            "off.",
            1,
        ),
    ] = None
    xtc_probability: Annotated[
        float | None,
        Field(
            fields.number(0, 1),
            "How often all tokens above xtc_threshold but the least likely of them are excluded.",
            0,
        ),
    ] = None
    xtc_threshold: Annotated[
        float | None,
        Field(fields.number(0, 1), "See xtc_probability. Above 0.5 nothing is excluded.", 0.1),
    ] = None
    dry_multiplier: Annotated[
        float | None,
        Field(
            fields.number(0, 100),
            "How much a token loses that would extend a repetition. 0 is off.",
            0,
        ),
    ] = None
    dry_base: Annotated[
        float | None,
        Field(fields.number(1, 100), "The loss grows by this factor with each token.", 1.75),
    ] = None
    dry_allowed_length: Annotated[
        int | None,
        Field(fields.integer(0, _MOST), "Shorter repetitions cost nothing.", 2),
    ] = None
    dry_penalty_last_n: Annotated[
        int | None,
        Field(
            fields.integer(-1, _MOST),
            "Search this many tokens at the end for repetitions. -1 means all, 0 none.",
            -1,
        ),
    ] = None
    dry_sequence_breakers: Annotated[
        tuple[str, ...] | None,
        Field(
            fields.strings(MOST_BREAKERS, MOST_BREAKER_CHARACTERS),
            "A repetition does not reach back over these strings.",
            list(BREAKERS),
        ),
    ] = None
    response_format: Annotated[
        OutputGrammar | None,
        Field(RESPONSE_FORMAT, "The text is any text, a JSON object, or follows a JSON Schema."),
    ] = None
    structured_outputs: Annotated[
        OutputGrammar | None,
        Field(
            STRUCTURED_OUTPUTS,
            "The text follows a JSON Schema, a regular expression, a choice or a grammar.",
        ),
    ] = None
    allowed_token_ids: Annotated[
        tuple[int, ...] | None,
        Field(id_fields.id_list(least=1), "Draw only these tokens."),
    ] = None
    stop_token_ids: Annotated[
        tuple[int, ...] | None,
        Field(
            id_fields.id_list(most=MOST_STOP_IDS),
            "Tokens that end a choice, even with ignore_eos. They write no text.",
        ),
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None,
        Field(
            fields.BOOLEAN,
            "The text includes the stop string, or the text of the stop token.",
            False,  # noqa: FBT003 - the default
        ),
    ] = None
    skip_special_tokens: Annotated[
        bool | None,
        Field(
            fields.BOOLEAN,
            "Control tokens write nothing into generated text.",
            False,  # noqa: FBT003 - the default
        ),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        Field(
            fields.BOOLEAN,
            "Put a BOS before a text prompt, if the model wants one.",
            True,  # noqa: FBT003 - the default
        ),
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None,
        Field(
            fields.COUNT_OR_FIT,
            "Keep this many tokens from the end of each prompt. -1 keeps what fits.",
        ),
    ] = None
    logprob_token_ids: Annotated[
        tuple[int, ...] | None,
        Field(
            id_fields.id_list(most=MOST_SCORED_IDS),
            "Return the log-probabilities of these tokens at every position, too.",
        ),
    ] = None
    prompt_logprobs: Annotated[
        int | None,
        Field(
            lambda limits: fields.integer(0, limits.max_logprobs),
            "Return log-probabilities and ranks of the prompt's tokens, in vLLM's shape.",
        ),
    ] = None
    return_token_ids: Annotated[
        bool | None,
        Field(fields.BOOLEAN, "Return the ids of prompt and choice.", False),  # noqa: FBT003 - the default
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None,
        Field(
            fields.BOOLEAN,
            "Tokens in logprobs are written token_id:ID.",
            False,  # noqa: FBT003 - the default
        ),
    ] = None

    cache_salt: Annotated[
        str | None,
        Field(
            fields.SALT,
            "Computed prompts are shared only with requests that have the same salt, and within "
            "what the operator's cache_scope shares.",
        ),
    ] = None


@lru_cache
def parsers(limits: Limits) -> Mapping[str, Parser]:
    """Returns the parser of each field under the operator's limits."""
    declared = fields.declared(CompletionRequest)
    return {name: field.kind_with(limits).parse for name, field in declared.items()}


def schema(limits: Limits) -> Schema:
    """Returns the JSON Schema of a body under the operator's limits."""
    found = fields.object_schema(
        CompletionRequest, limits, "All fields of a request. Null means the default."
    )
    found["properties"] |= foreign.schemas()
    if limits.require_model:
        found["required"] = ["model"]
        found["properties"]["model"] |= {"type": "string", "minLength": 1}
    return found


def decode(body: bytes, limits: Limits, *, model: str | None = None) -> CompletionRequest:
    """Parse a body. ``model`` is the model that the path names, if it names one.

    Raises ``InvalidRequest``.
    """
    table = parsers(limits)
    parsed = parse_fields(parse_object(body, table), table)
    if model is not None:
        # Azure's clients send an empty name beside the deployment in the path.
        if (parsed.get("model") or model) != model:
            raise InvalidRequest("The body names another 'model' than the path.", param="model")
        parsed["model"] = model
    return CompletionRequest(**with_model(parsed, limits))


def parse_fields(raw: Mapping[str, Json], table: Mapping[str, Parser]) -> dict[str, Any]:
    """Returns the values of all fields but those that are null. Raises ``InvalidRequest``."""
    parsed: dict[str, Any] = {}
    for name, value in raw.items():
        parser = table.get(name)
        if parser is None:
            foreign.ignore_or_refuse(raw, name, table)
        elif value is not None:
            parsed[name] = parser(name, value)
    return parsed


def with_model(parsed: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Returns the fields with a model, or None for none. Raises ``InvalidRequest`` (R1)."""
    if parsed.get("model"):
        return parsed
    if limits.require_model:
        raise InvalidRequest("you must provide a model parameter", param="model")
    return {**parsed, "model": None}
