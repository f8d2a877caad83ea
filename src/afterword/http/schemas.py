"""The JSON Schemas of the API: one for each value that comes in or goes out.

Written by hand, since they say more than types do: ranges, defaults, what null means. Tests hold
them against the request parser, the wire's structs and real answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from afterword.core.limits import MOST_USER_CHARACTERS, Limits

Schema: TypeAlias = dict[str, Any]

_INT64 = 2**63
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_IDS: Schema = {"type": "array", "items": _COUNT}
_FINGERPRINT: Schema = {"type": "string", "pattern": "^fp_[0-9a-f]{10}$"}


def ref(name: str) -> Schema:
    """A reference to a schema of this document."""
    return {"$ref": f"#/components/schemas/{name}"}


def all_schemas(limits: Limits) -> Mapping[str, Schema]:
    """Every schema by its name; the request's have the operator's limits."""
    return {
        "CompletionRequest": completion_request(limits),
        "Completion": _completion(),
        "Chunk": _chunk(),
        "Choice": _choice(),
        "Logprobs": _logprobs(),
        "Usage": _usage(),
        "Error": _error(),
        "ErrorBody": _error_body(),
        "Model": _model(),
        "ModelList": _closed({"object": {"const": "list"}, "data": _array(ref("Model"))}),
        "Health": _health(),
        "Ready": _ready(),
        **_tokenization(),
    }


def completion_request(limits: Limits) -> Schema:
    """The body of ``POST /v1/completions`` (R1 to R19)."""
    prompts = {"maxItems": limits.max_prompts, "minItems": 1}
    ids = {"type": "array", "items": _COUNT, "minItems": 1}
    stop = {"type": "string", "minLength": 1}
    penalty = {"minimum": -2, "maximum": 2, "default": 0}
    options = {
        "include_usage": _or_null("boolean", "A last chunk carries the usage.", default=False),
        "include_obfuscation": _or_null(
            "boolean", "Chunks carry padding that hides their length.", default=False
        ),
    }
    tokens_default = limits.default_max_tokens
    silent = "until the model ends or the context is full"
    return {
        "type": "object",
        "description": "Everything that can be asked; null means the default.",
        "additionalProperties": False,
        "required": ["model"] if limits.require_model else [],
        "properties": {
            "model": {
                "type": "string" if limits.require_model else ["string", "null"],
                "description": "A served model's name or alias.",
                **({"minLength": 1} if limits.require_model else {}),
            },
            "prompt": {
                "description": "Text or token ids, one or many. Null, absent or empty text means "
                "the start of a new document.",
                "anyOf": [
                    _TEXT,
                    {"type": "array", "items": _TEXT, **prompts},
                    ids,
                    {"type": "array", "items": ids, **prompts},
                    {"type": "null"},
                ],
            },
            "suffix": _or_null("string", "What follows: the completion is what stands between."),
            "max_tokens": _or_null(
                "integer",
                "The most tokens to generate; without it "
                f"{silent if tokens_default is None else tokens_default}. 0 generates nothing.",
                minimum=0,
                maximum=_INT64 - 1,
            ),
            "temperature": _or_null(
                "number", "0 takes the likeliest token.", minimum=0, maximum=2, default=1
            ),
            "top_p": _or_null(
                "number", "Nucleus; 0 keeps one token.", minimum=0, maximum=1, default=1
            ),
            "n": _or_null(
                "integer", "Choices for each prompt.", minimum=1, maximum=limits.max_n, default=1
            ),
            "best_of": _or_null(
                "integer",
                "Candidates for each prompt, of which the n likeliest are returned; 0 means n.",
                minimum=0,
                maximum=limits.max_best_of,
            ),
            "stream": _or_null("boolean", "Server-sent events of chunks.", default=False),
            "stream_options": {
                "type": ["object", "null"],
                "description": "Only with stream.",
                "additionalProperties": False,
                "properties": options,
            },
            "logprobs": {
                "description": "Log-probabilities of this many likeliest tokens and of the chosen "
                "one; true means 0, false means none.",
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": limits.max_logprobs},
                    {"type": ["boolean", "null"]},
                ],
            },
            "echo": _or_null("boolean", "Put the prompt before the completion.", default=False),
            "stop": {
                "description": "Strings that end a choice; they are not part of its text.",
                "anyOf": [
                    stop,
                    {"type": "array", "items": stop, "maxItems": limits.max_stops},
                    {"type": "null"},
                ],
            },
            "presence_penalty": _or_null("number", "For tokens generated before.", **penalty),
            "frequency_penalty": _or_null(
                "number", "For tokens generated before, each time.", **penalty
            ),
            "logit_bias": {
                "type": ["object", "null"],
                "description": "Token ids to what is added to their logits; -100 bans.",
                "propertyNames": {"pattern": "^[0-9]+$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
            "seed": _or_null(
                "integer", "Makes draws repeatable.", minimum=-_INT64, maximum=_INT64 - 1
            ),
            "user": _or_null(
                "string",
                "Recorded with the usage; without null characters.",
                maxLength=MOST_USER_CHARACTERS,
                pattern="^[^\\u0000]*$",
            ),
            "top_k": _or_null(
                "integer",
                "Draw from the k likeliest; 0 and -1 are off.",
                minimum=-1,
                maximum=_INT64 - 1,
                default=0,
            ),
            "min_p": _or_null(
                "number",
                "Draw from tokens at least this likely, relative to the likeliest.",
                minimum=0,
                maximum=1,
                default=0,
            ),
            "min_tokens": _or_null(
                "integer",
                "No end token before this many tokens.",
                minimum=0,
                maximum=_INT64 - 1,
                default=0,
            ),
            "ignore_eos": _or_null("boolean", "End tokens do not end a choice.", default=False),
        },
    }


def _or_null(kind: str, description: str, **more: object) -> Schema:
    return {"type": [kind, "null"], "description": description, **more}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _closed(properties: Mapping[str, Schema], description: str = "", **more: object) -> Schema:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "required": list(properties),
        "properties": dict(properties),
        **more,
    }


def _head() -> dict[str, Schema]:
    return {
        "id": {"type": "string", "pattern": "^cmpl-.{24,}$"},
        "object": {"const": "text_completion"},
        "created": {"type": "integer", "description": "Unix seconds."},
        "model": {"type": "string", "description": "The name asked for."},
        "system_fingerprint": _FINGERPRINT,
    }


def _completion() -> Schema:
    return _closed(
        {**_head(), "choices": _array(ref("Choice")), "usage": ref("Usage")}, "A whole answer."
    )


def _chunk() -> Schema:
    """Usage is there, null but for the last chunk, only where it was asked for (S5)."""
    schema = _closed(
        {**_head(), "choices": {**_array(ref("Choice")), "maxItems": 1}}, "One event of a stream."
    )
    schema["properties"] |= {
        "usage": {"anyOf": [ref("Usage"), {"type": "null"}]},
        "obfuscation": _TEXT,
    }
    return schema


def _choice() -> Schema:
    return _closed(
        {
            "text": _TEXT,
            "index": _COUNT,
            "logprobs": {"anyOf": [ref("Logprobs"), {"type": "null"}]},
            "finish_reason": {"enum": ["stop", "length", None]},
        },
        "One continuation, or in a chunk what is added to it.",
    )


def _logprobs() -> Schema:
    top = {"type": ["object", "null"], "additionalProperties": {"type": "number"}}
    return _closed(
        {
            "tokens": _array(_TEXT),
            "token_logprobs": _array({"type": ["number", "null"]}),
            "top_logprobs": _array(top),
            "text_offset": _array(_COUNT),
        },
        "Four arrays of one length; of the first token of an echoed prompt the values are null.",
    )


def _usage() -> Schema:
    return _closed(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _closed({"cached_tokens": _COUNT}),
        },
        "Tokens of the whole request.",
    )


def _error() -> Schema:
    return _closed({"error": ref("ErrorBody")}, "What every error answer is.")


def _error_body() -> Schema:
    return _closed(
        {
            "message": _TEXT,
            "type": _TEXT,
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
        "What is wrong, and with which parameter.",
    )


def _model() -> Schema:
    facts = {"type": "object", "additionalProperties": {"type": _SCALARS}}
    return _closed(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "afterword": {**facts, "description": "Context, limits, file, slots."},
        },
        "A served model.",
    )


_ROLES = ("bos", "eos", "pad")
_SCALARS = ["string", "integer", "boolean", "null"]


def _health() -> Schema:
    engine = _closed(
        {
            "model": _TEXT,
            "healthy": {"type": "boolean"},
            "fingerprint": _FINGERPRINT,
            "batch_invariant": {
                "type": "boolean",
                "description": "Found at start: answers do not depend on what else is served.",
            },
            "prefix_sharing": {
                "enum": ["cells", "checkpoints", "none", None],
                "description": "How prompts that begin alike share what was computed: any tokens, "
                "kept states, nothing; null where another server decides.",
            },
        },
        required=["healthy", "batch_invariant", "prefix_sharing"],
    )
    schema = _closed(
        {
            "status": {"enum": ["ok", "unhealthy", "draining"]},
            "model": _TEXT,
            "fingerprint": _FINGERPRINT,
            "engines": _array(engine),
        },
        "Whether completions are to be had; names and fingerprints only of models that whoever "
        "asks may use.",
        required=["status", "engines"],
    )
    schema["properties"]["error"] = ref("ErrorBody")
    return schema


def _ready() -> Schema:
    schema = _closed(
        {
            "status": {"enum": ["ready", "not_ready"]},
            "ledger": {"enum": ["reachable", "unreachable"]},
        },
        "Whether requests are taken and can be recorded.",
    )
    schema["properties"]["error"] = ref("ErrorBody")
    return schema


def _tokenization() -> Mapping[str, Schema]:
    """The shapes of vLLM's tokenizer routes, which evaluation harnesses call."""
    model = {"model": {"type": ["string", "null"], "description": "Default: the first model."}}
    return {
        "TokenizeRequest": {
            "type": "object",
            "required": ["prompt"],
            "additionalProperties": False,
            "properties": {
                **model,
                "prompt": _TEXT,
                "add_special_tokens": _or_null(
                    "boolean", "BOS if the model adds one.", default=True
                ),
                "return_token_strs": _or_null("boolean", "Their texts too.", default=False),
            },
        },
        "Tokens": _closed(
            {
                "count": _COUNT,
                "max_model_len": _COUNT,
                "tokens": _IDS,
                "token_strs": {"type": ["array", "null"], "items": _TEXT},
            }
        ),
        "DetokenizeRequest": {
            "type": "object",
            "required": ["tokens"],
            "additionalProperties": False,
            "properties": {**model, "tokens": _IDS},
        },
        "Text": _closed({"prompt": _TEXT}),
        "TokenizerInfo": _tokenizer_info(),
    }


def _tokenizer_info() -> Schema:
    schema = _closed(
        {
            "tokenizer_class": _TEXT,
            "vocab_size": _COUNT,
            "model_max_length": _COUNT,
            **{f"{role}_token": _or_null("string", "Its name.") for role in _ROLES},
            "add_bos_token": {"type": "boolean"},
            "chat_template": {"type": ["string", "null"]},
        }
    )
    schema["properties"]["vocabulary"] = {
        "type": "object",
        "description": "With ?vocabulary=true: all tokens, in base64, and what they are for.",
    }
    return schema
