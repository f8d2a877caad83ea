"""The OpenAPI 3.1 document: which path takes and gives which schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from afterword.completion.fields import Schema
from afterword.core.limits import Limits
from afterword.http import admin
from afterword.http.schemas import all_schemas, ref

_ERRORS: Mapping[int, str] = {
    400: "The request cannot be honoured as it stands; param names the culprit.",
    401: "No key, or a wrong one.",
    403: "A key that is not made for this.",
    404: "Unknown path, or a model that is not served.",
    405: "The path exists, the method does not.",
    413: "The body is over the operator's limit.",
    429: "Rate or budget used up.",
    500: "Our own fault; the message has the request id.",
    503: "The waiting line is full, the engine is dead, or the server is shutting down.",
}
_COMMON = (401, 405, 500)
_OPERATORS = (400, 401, 403, 405, 413, 500, 503)
_WITH_BODY = (400, 401, 404, 405, 413, 429, 500, 503)


@lru_cache(maxsize=2)
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
            "/ready": {"get": _ready()},
            "/metrics": {"get": _plain("Figures for Prometheus.", "text/plain")},
            "/openapi.json": {"get": _plain("This document.", "application/json")},
            "/docs": {"get": _plain("This document for people.", "text/html")},
            "/": {"get": _plain("The playground.", "text/html")},
            "/playground/{path}": {
                "get": {
                    **_plain("Files of the playground.", "*/*", also=(404,)),
                    "parameters": [{**in_path, "name": "path"}],
                }
            },
            **_administration(),
        },
        "components": {"schemas": {**all_schemas(limits), **_admin_schemas()}},
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


def _plain(summary: str, media: str, *, also: Sequence[int] = ()) -> Schema:
    ok = {"description": "Done.", "content": {media: {"schema": {}}}}
    return {"summary": summary, "responses": {"200": ok, **_errors(sorted({*_COMMON, *also}))}}


def _ready() -> Schema:
    operation = _get("Whether requests are taken and recorded.", "Ready")
    del operation["responses"]["401"]
    operation["responses"]["503"] = {"description": "Not now.", "content": _json("Ready")}
    return operation


def _administration() -> Mapping[str, Schema]:
    """What operators' programs use; every route needs an admin key."""
    in_path = {"name": "key", "in": "path", "required": True, "schema": {"type": "string"}}
    asked = {
        name: {"name": name, "in": "query", "schema": {"type": "string"}, "description": text}
        for name, text in (
            ("by", "What is added up: key, model, user or day."),
            ("since", "2026-11-25, 2026-11-25T14:00 (UTC) or 7d."),
            ("until", "The same; the moment itself is not included."),
            ("key", "Only of this key, by id or name."),
            ("after", "Only records after this id."),
            ("limit", "At most so many records; 1000 without it."),
        )
    }
    when = [asked["since"], asked["until"], asked["key"]]
    pages = [*when, asked["after"], asked["limit"]]
    return {
        "/admin/v1/keys": {
            "get": _admin("All keys.", "KeyList"),
            "post": _admin("Make a key; it is shown once.", "Key", body="NewKeyRequest"),
        },
        "/admin/v1/keys/{key}": {
            "get": _admin("One key, by id or name.", "Key", [in_path]),
            "delete": _admin("End a key.", "Key", [in_path]),
        },
        "/admin/v1/keys/{key}/rotate": {
            "post": _admin("A new secret for a key.", "Key", [in_path], body="RotateRequest")
        },
        "/admin/v1/usage": {
            "get": _admin("Sums of what was used.", "UsageList", [asked["by"], *when])
        },
        "/admin/v1/usage/requests": {
            "get": _admin("Requests one by one, in pages.", "RecordList", pages)
        },
    }


def _admin(
    summary: str, answer: str, parameters: Sequence[Schema] = (), *, body: str | None = None
) -> Schema:
    operation: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": _json(answer)},
            **_errors(_OPERATORS),
        },
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {"required": body != "RotateRequest", "content": _json(body)}
    return operation


def _admin_schemas() -> Mapping[str, Schema]:
    """Of the types themselves: here they say all there is to say."""
    types = (
        admin.NewKeyRequest, admin.RotateRequest, admin.Key, admin.KeyList, admin.UsageList,
        admin.RecordList,
    )  # fmt: skip
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return schemas


def _health() -> Schema:
    operation = _get("Whether completions are to be had.", "Health")
    del operation["responses"]["401"]
    operation["responses"]["503"] = {
        "description": "An engine is dead, or the server is shutting down.",
        "content": _json("Health"),
    }
    return operation
