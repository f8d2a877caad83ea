"""The OpenAPI 3.1 document: which schemas each path takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from afterword.completion.fields import Schema
from afterword.core.limits import Limits
from afterword.http import admin
from afterword.http.editor_schemas import editor_schemas
from afterword.http.schemas import all_schemas, ref

_ERRORS: Mapping[int, str] = {
    400: "The request cannot be honoured; param names the field at fault.",
    401: "The key is missing or wrong.",
    403: "The key is valid, but not for this.",
    404: "The path is unknown, or the model is not served.",
    405: "The path exists, but not with this method.",
    413: "The body is over the operator's limit.",
    415: "The body is compressed.",
    429: "The key's rate or budget is used up.",
    500: "The server failed; the message has the request id.",
    502: "The answer of a server behind this one broke off, or cannot be read.",
    503: "The waiting line is full, too many large requests are under way, an engine or the ledger "
    "is away, or the server shuts down.",
}
_UNREADABLE = (
    "400, 408 or 431: the request cannot be read, comes too late, or its head is too large."
)
_COMMON = (401, 405, 500, 503)
_OPERATORS = (400, 401, 403, 405, 413, 415, 500, 503)
_SCHEMES: Mapping[str, Schema] = {
    "key": {"type": "http", "scheme": "bearer"},
    "azure_key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
_KEY: Sequence[Schema] = [{name: []} for name in _SCHEMES]
_KEY_IF_THERE_ARE_KEYS: Sequence[Schema] = [*_KEY, {}]
_NO_KEY: Sequence[Schema] = []
_WITH_BODY = (400, 401, 404, 405, 413, 415, 429, 500, 502, 503)


@lru_cache(maxsize=2)
def document(limits: Limits, *, model: str, version: str, page: bool) -> Mapping[str, Any]:
    """Returns the document of a server with these limits. ``model`` is in its examples.

    ``page``: the server has the playground.
    """
    examples = {"short": {"value": {"model": model, "prompt": "Once upon a time"}}}
    completion = _post(
        "Complete a prompt.",
        "CompletionRequest",
        {
            "application/json": {"schema": ref("Completion")},
            **_events("Chunk", "then data: [DONE]"),
        },
        examples,
    )
    in_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    in_query = {"name": "model", "in": "query", "schema": {"type": "string"}}
    whole = {"name": "vocabulary", "in": "query", "schema": {"type": "boolean"}}
    answers = completion["responses"]["200"]["content"]
    engines = _post("Complete a prompt.", "EngineRequest", answers)
    engines |= {"parameters": [in_path], "deprecated": True}
    models = _get("All served models.", "ModelList")
    one_model = {**_get("One model.", "Model", also=(404,)), "parameters": [in_path]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Afterword",
            "version": version,
            "description": "The completions API: OpenAI's POST /v1/completions, in full.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": _KEY_IF_THERE_ARE_KEYS,
        "paths": {
            "/v1/completions": {"post": completion},
            "/v1/engines/{model}/completions": {"post": engines},
            "/v1/engines": {"get": {**models, "deprecated": True}},
            "/v1/engines/{model}": {"get": {**one_model, "deprecated": True}},
            "/v1/fim/completions": {
                "post": _post(
                    "Fill in the middle, in Mistral's shape.",
                    "FimRequest",
                    {**_json("FimCompletion"), **_events("FimChunk", "then data: [DONE]")},
                )
            },
            "/infill": {
                "post": _post(
                    "Fill in the middle, in llama-server's shape.",
                    "InfillRequest",
                    {
                        **_json("InfillAnswer"),
                        **_events("InfillChunk", "and an InfillAnswer without content as the last"),
                    },
                )
            },
            "/v1/models": {"get": models},
            "/v1/models/{model}": {"get": one_model},
            "/tokenize": {
                "post": _post("Turn text into token ids.", "TokenizeRequest", _json("Tokens"))
            },
            "/detokenize": {
                "post": _post("Turn token ids into text.", "DetokenizeRequest", _json("Text"))
            },
            "/apply-template": {
                "post": _post(
                    "Turn a conversation into a prompt, by the model's chat template.",
                    "TemplateRequest",
                    _json("Templated"),
                )
            },
            "/tokenizer_info": {
                "get": {
                    **_get("The tokenizer.", "TokenizerInfo", also=(400, 404)),
                    "parameters": [in_query, whole],
                }
            },
            "/health": {"get": _health()},
            "/ready": {"get": _ready()},
            "/metrics": {"get": _plain("Metrics for Prometheus.", "text/plain")},
            "/openapi.json": {"get": _plain("This document.", "application/json")},
            "/docs": {"get": _plain("This document as a page.", "text/html")},
            **(_page() if page else {}),
            **_administration(),
        },
        "components": {
            "securitySchemes": _SCHEMES,
            "schemas": {**all_schemas(limits), **editor_schemas(limits), **_admin_schemas()},
        },
    }


def _json(name: str) -> Schema:
    return {"application/json": {"schema": ref(name)}}


def _events(chunk: str, end: str) -> Schema:
    """Returns the content of a stream of these chunks."""
    described = (
        f"With stream: one {chunk} in each data line, {end}. If the server fails midway, an Error "
        "in a data line is the end."
    )
    return {"text/event-stream": {"schema": {"type": "string", "description": described}}}


def _errors(statuses: Sequence[int]) -> dict[str, Schema]:
    """Returns the error answers of an operation. Any may get one to a request of bad HTTP (H15)."""
    found = {
        str(status): {"description": _ERRORS[status], "content": _json("Error")}
        for status in statuses
    }
    return {**found, "default": {"description": _UNREADABLE, "content": _json("Error")}}


def _without_key(operation: Schema) -> Schema:
    """Returns an operation that needs no key."""
    answers = {status: one for status, one in operation["responses"].items() if status != "401"}
    return {**operation, "responses": answers, "security": _NO_KEY}


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


def _page() -> Mapping[str, Schema]:
    in_path = {"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}
    files = _without_key(_plain("Files of the playground.", "*/*", also=(404,)))
    return {
        "/": {"get": _without_key(_plain("The playground.", "text/html"))},
        "/playground/{path}": {"get": {**files, "parameters": [in_path]}},
    }


def _ready() -> Schema:
    operation = _without_key(_get("Whether the server takes and records requests.", "Ready"))
    operation["responses"]["503"] = {
        "description": "The server does not take requests now.",
        "content": _json("Ready"),
    }
    return operation


def _administration() -> Mapping[str, Schema]:
    """Returns the routes of operators. Each needs an admin key."""
    in_path = {"name": "key", "in": "path", "required": True, "schema": {"type": "string"}}
    most = admin.MOST_RECORDS
    grouped: Schema = {"enum": list(admin.GROUPS), "default": admin.GROUPS[0]}
    number: Schema = {"type": "integer", "minimum": 1, "maximum": most, "default": most}
    text: Schema = {"type": "string"}
    asked = {
        name: {"name": name, "in": "query", "schema": schema, "description": description}
        for name, schema, description in (
            ("by", grouped, "What to sum by."),
            ("since", text, "The first moment: 2026-11-25, 2026-11-25T14:00 (UTC) or 7d."),
            ("until", text, "The end, written in the same way. It is not included."),
            ("key", text, "Only requests of this key, by id or name."),
            ("after", text, "Only records behind that of this id, by their beginning."),
            ("limit", number, "The largest number of records."),
        )
    }
    when = [asked["since"], asked["until"], asked["key"]]
    pages = [*when, asked["after"], asked["limit"]]
    return {
        "/admin/v1/keys": {
            "get": _admin("All keys.", "KeyList"),
            "post": _admin("Make a key. Only this answer shows it.", "Key", body="NewKeyRequest"),
        },
        "/admin/v1/keys/{key}": {
            "get": _admin("One key, by id or name.", "Key", [in_path]),
            "delete": _admin("Revoke a key.", "Key", [in_path]),
        },
        "/admin/v1/keys/{key}/rotate": {
            "post": _admin("Give a key a new secret.", "Key", [in_path], body="RotateRequest")
        },
        "/admin/v1/usage": {"get": _admin("Sums of the usage.", "UsageList", [asked["by"], *when])},
        "/admin/v1/usage/requests": {
            "get": _admin("Requests one by one, in pages.", "RecordList", pages)
        },
    }


def _admin(
    summary: str, answer: str, parameters: Sequence[Schema] = (), *, body: str | None = None
) -> Schema:
    operation: Schema = {
        "summary": summary,
        "security": _KEY,
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
    """Returns the schemas of the admin routes. Their types say everything."""
    types = (
        admin.NewKeyRequest, admin.RotateRequest, admin.Key, admin.KeyList, admin.UsageList,
        admin.RecordList,
    )  # fmt: skip
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return schemas


def _health() -> Schema:
    operation = _without_key(_get("Whether the server can complete prompts.", "Health"))
    operation["responses"]["503"] = {
        "description": "An engine is dead, or the server is shutting down.",
        "content": _json("Health"),
    }
    return operation
