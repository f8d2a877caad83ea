"""The OpenAPI 3.1 document: which path takes and gives which schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afterword.core.limits import Limits
from afterword.http.schemas import Schema, all_schemas, ref

_ERRORS: Mapping[int, str] = {
    400: "The request cannot be honoured as it stands; param names the culprit.",
    401: "No key, or a wrong one.",
    404: "Unknown path, or a model that is not served.",
    405: "The path exists, the method does not.",
    413: "The body is over the operator's limit.",
    429: "Rate or budget used up.",
    500: "Our own fault; the message has the request id.",
    503: "The waiting line is full, the engine is dead, or the server is shutting down.",
}
_COMMON = (405, 500)
_WITH_BODY = (400, 401, 404, 405, 413, 429, 500, 503)


def document(limits: Limits, *, model: str, version: str) -> Mapping[str, Any]:
    """The document of a server with these limits; ``model`` stands in its examples."""
    examples = {"short": {"value": {"model": model, "prompt": "Once upon a time"}}}
    completion = _post(
        "Complete a prompt.",
        "CompletionRequest",
        {
            "application/json": {"schema": ref("Completion")},
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "description": "With stream: one Chunk a data line, then data: [DONE]; "
                    "an Error in a data line where something fails midway.",
                }
            },
        },
        examples,
    )
    in_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    in_query = {"name": "model", "in": "query", "schema": {"type": "string"}}
    whole = {"name": "vocabulary", "in": "query", "schema": {"type": "boolean"}}
    engines = {**completion, "parameters": [in_path], "deprecated": True}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Afterword",
            "version": version,
            "description": "The completions API: OpenAI's POST /v1/completions, in full.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/completions": {"post": completion},
            "/v1/engines/{model}/completions": {"post": engines},
            "/v1/models": {"get": _get("The models served.", "ModelList")},
            "/v1/models/{model}": {
                "get": {
                    **_get("One model.", "Model", also=(404,)),
                    "parameters": [in_path],
                }
            },
            "/tokenize": {"post": _post("Text to token ids.", "TokenizeRequest", _json("Tokens"))},
            "/detokenize": {
                "post": _post("Token ids to text.", "DetokenizeRequest", _json("Text"))
            },
            "/tokenizer_info": {
                "get": {
                    **_get("The tokenizer.", "TokenizerInfo", also=(400, 404)),
                    "parameters": [in_query, whole],
                }
            },
            "/health": {"get": _health()},
            "/metrics": {"get": _plain("Figures for Prometheus.", "text/plain")},
            "/openapi.json": {"get": _plain("This document.", "application/json")},
            "/docs": {"get": _plain("This document for people.", "text/html")},
            "/": {"get": _plain("What this is.", "text/html")},
        },
        "components": {"schemas": dict(all_schemas(limits))},
    }


def _json(name: str) -> Schema:
    return {"application/json": {"schema": ref(name)}}


def _errors(statuses: Sequence[int]) -> dict[str, Schema]:
    return {
        str(status): {"description": _ERRORS[status], "content": _json("Error")}
        for status in statuses
    }


def _post(summary: str, request: str, content: Schema, examples: Schema | None = None) -> Schema:
    body = {"schema": ref(request)}
    if examples is not None:
        body["examples"] = examples
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": {"description": "Done.", "content": content}, **_errors(_WITH_BODY)},
    }


def _get(summary: str, answer: str, *, also: Sequence[int] = ()) -> Schema:
    ok = {"description": "Done.", "content": _json(answer)}
    return {
        "summary": summary,
        "responses": {"200": ok, **_errors(sorted({*_COMMON, *also}))},
    }


def _plain(summary: str, media: str) -> Schema:
    ok = {"description": "Done.", "content": {media: {"schema": {}}}}
    return {"summary": summary, "responses": {"200": ok, **_errors(_COMMON)}}


def _health() -> Schema:
    operation = _get("Whether completions are to be had.", "Health")
    operation["responses"]["503"] = {
        "description": "An engine is dead, or the server is shutting down.",
        "content": _json("Health"),
    }
    return operation
