"""The JSON Schemas of the API: one for each value that comes in or goes out.

Those of requests come from the declarations of their fields. Those of answers are written by hand,
because they say more than types do. Tests compare them with the wire's structs and real answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from afterword.completion import request
from afterword.completion.fields import Schema, object_schema
from afterword.completion.templating import TemplateRequest
from afterword.completion.tokens import DetokenizeRequest, TokenizeRequest
from afterword.core.limits import Limits

_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_IDS: Schema = {"type": "array", "items": _COUNT}
_FINGERPRINT: Schema = {"type": "string", "pattern": "^fp_[0-9a-f]{10}$"}


def ref(name: str) -> Schema:
    """Returns a reference to a schema of this document."""
    return {"$ref": f"#/components/schemas/{name}"}


def all_schemas(limits: Limits) -> Mapping[str, Schema]:
    """Returns every schema by its name. Those of requests have the operator's limits."""
    return {
        "CompletionRequest": request.schema(limits),
        "EngineRequest": _engine_request(limits),
        "Completion": _completion(),
        "Chunk": _chunk(),
        "Choice": _choice(),
        "Logprobs": _logprobs(),
        "Usage": _usage(),
        "InfillReport": _infill_report(),
        "Error": _error(),
        "ErrorBody": _error_body(),
        "Model": _model(),
        "ModelList": _closed({"object": {"const": "list"}, "data": _array(ref("Model"))}),
        "Health": _health(),
        "Ready": _ready(),
        **_tokenization(limits),
    }


def _engine_request(limits: Limits) -> Schema:
    """The path names the model, so the body may do without."""
    schema = request.schema(msgspec.structs.replace(limits, require_model=False))
    return {
        **schema,
        "description": "A CompletionRequest. A model in it has to be the path's.",
    }


def _or_null(kind: str, description: str, **more: object) -> Schema:
    return {"type": [kind, "null"], "description": description, **more}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _closed(properties: Mapping[str, Schema], description: str = "", **more: object) -> Schema:
    """Returns the schema of an object with exactly these properties."""
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
        "model": {"type": "string", "description": "The name that the request asked for."},
        "system_fingerprint": _FINGERPRINT,
    }


def _completion() -> Schema:
    """``infill`` is there only if a search found the middles (F3)."""
    schema = _closed(
        {**_head(), "choices": _array(ref("Choice")), "usage": ref("Usage")}, "A whole answer."
    )
    schema["properties"] |= {"infill": ref("InfillReport")}
    return schema


def _chunk() -> Schema:
    """``usage`` is there only if the request asked, and null except in the last chunk (S5)."""
    schema = _closed(
        {**_head(), "choices": {**_array(ref("Choice")), "maxItems": 1}}, "One event of a stream."
    )
    schema["properties"] |= {
        "usage": {"anyOf": [ref("Usage"), {"type": "null"}]},
        "obfuscation": _TEXT,
        "infill": ref("InfillReport"),
    }
    return schema


def _infill_report() -> Schema:
    return _closed(
        {
            "found_by": {"const": "search"},
            "candidates": _COUNT,
            "places": _COUNT,
            "scored": _COUNT,
            "cut_by_time": {"type": "boolean"},
        },
        "How a model without fill-in-the-middle tokens found the middles.",
    )


def _choice() -> Schema:
    """The last three are there only if the request asked (R17)."""
    schema = _closed(
        {
            "text": _TEXT,
            "index": _COUNT,
            "logprobs": {"anyOf": [ref("Logprobs"), {"type": "null"}]},
            "finish_reason": {"enum": ["stop", "length", None]},
        },
        "One continuation, or what a chunk adds to it.",
    )
    entry = _closed({"logprob": {"type": "number"}, "rank": _COUNT, "decoded_token": _TEXT})
    by_id = {
        "anyOf": [
            {"type": "object", "propertyNames": {"pattern": "^[0-9]+$"},
             "additionalProperties": entry},
            {"type": "null"},
        ]
    }  # fmt: skip
    schema["properties"] |= {
        "token_ids": _array(_COUNT),
        "prompt_token_ids": _array(_COUNT),
        "prompt_logprobs": _array(by_id),
    }
    return schema


def _logprobs() -> Schema:
    top = {"type": ["object", "null"], "additionalProperties": {"type": "number"}}
    return _closed(
        {
            "tokens": _array(_TEXT),
            "token_logprobs": _array({"type": ["number", "null"]}),
            "top_logprobs": _array(top),
            "text_offset": _array(_COUNT),
        },
        "Four arrays of one length. An echoed prompt's first token has null for both values.",
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
    return _closed({"error": ref("ErrorBody")}, "The body of every error answer.")


def _error_body() -> Schema:
    return _closed(
        {
            "message": _TEXT,
            "type": _TEXT,
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
        "What is wrong, and with which field.",
    )


def _model() -> Schema:
    facts = {"type": "object", "additionalProperties": {"type": _SCALARS}}
    return _closed(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "max_model_len": {"type": "integer", "description": "The context in tokens."},
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
                "description": "Whether a check at the start found that answers do not depend on "
                "the rest of their batch.",
            },
            "prefix_sharing": {
                "enum": ["cells", "checkpoints", "none", None],
                "description": "How prompts share what was computed of a common beginning: any "
                "tokens, kept states or nothing. null if another server decides.",
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
        "Whether the server can complete prompts. Names and fingerprints are shown only of models "
        "that the key may use.",
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
        "Whether the server takes requests and can record them.",
    )
    schema["properties"]["error"] = ref("ErrorBody")
    return schema


def _tokenization(limits: Limits) -> Mapping[str, Schema]:
    """The shapes of vLLM's tokenizer routes, which evaluation harnesses call."""
    return {
        "TokenizeRequest": object_schema(TokenizeRequest, limits),
        "Tokens": _closed(
            {
                "count": _COUNT,
                "max_model_len": _COUNT,
                "tokens": _IDS,
                "token_strs": {"type": ["array", "null"], "items": _TEXT},
            }
        ),
        "DetokenizeRequest": object_schema(DetokenizeRequest, limits),
        "Text": _closed({"prompt": _TEXT}),
        "TemplateRequest": object_schema(TemplateRequest, limits),
        "Templated": _closed(
            {
                "prompt": _TEXT,
                "offsets": {
                    "type": "array",
                    "items": {"type": ["integer", "null"], "minimum": 0},
                    "description": "Where the text of each message begins in the prompt, in "
                    "characters. null if the template changes a text.",
                },
                "stop_token_ids": {
                    **_IDS,
                    "description": "End the model's turn; for the field of this name.",
                },
            }
        ),
        "TokenizerInfo": _tokenizer_info(),
    }


def _tokenizer_info() -> Schema:
    schema = _closed(
        {
            "tokenizer_class": _TEXT,
            "vocab_size": _COUNT,
            "model_max_length": _COUNT,
            **{f"{role}_token": _or_null("string", "The token's name.") for role in _ROLES},
            "add_bos_token": {"type": "boolean"},
            "chat_template": {"type": ["string", "null"]},
        }
    )
    schema["properties"]["vocabulary"] = {
        "type": "object",
        "description": "Only with ?vocabulary=true: all tokens in base64, and their roles.",
    }
    return schema
