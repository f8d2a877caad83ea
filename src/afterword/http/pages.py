"""Plain HTML pages, made on the server, without scripts and without other hosts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from starlette.responses import Response

from afterword.completion.fields import INT64

_STYLE = (
    # The colours of the playground.
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif;"
    "background:light-dark(#fdfbf7,#191c20);color:light-dark(#211e1a,#e9e4da)}"
    "body{max-width:56rem;margin:2rem auto;padding:0 1rem;overflow-wrap:break-word}"
    "a{color:light-dark(#27507a,#8fbbe6)}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9rem}"
    "h2 code{font-size:1.1rem}"
    "pre{overflow-x:auto;padding:.75rem 1rem;border:1px solid #8886;border-radius:.4rem}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;border-top:1px solid #8886}"
    "@media(max-width:40rem){tr,td{display:block}td+td{border:0;padding-top:0}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}
_SHOWN_LIMITS = {
    "minimum": "from",
    "maximum": "to",
    "maxLength": "characters at most",
    "minItems": "at least",
    "maxItems": "at most",
    "default": "default",
}
_NO_LIMITS = (-INT64, INT64 - 1)
"""Bounds of a 64-bit integer, which say nothing to a reader."""


def page(html: str) -> Response:
    """Returns a page as an answer. Its policy lets it load and run nothing."""
    return Response(html, headers=_HEADERS)


def docs(document: Mapping[str, Any]) -> str:
    """Returns an OpenAPI document as a page: every operation, every schema, every field."""
    about = document["info"]
    parts = [
        f"<h1>{escape(about['title'])} {escape(about['version'])}</h1>",
        f"<p>{escape(about['description'])}</p>",
    ]
    index, operations = [], []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            place, summary = escape(f"{method}{path}"), escape(operation["summary"])
            name = f"<code>{method.upper()} {escape(path)}</code>"
            index.append(f'<li><a href="#{place}">{name}</a> {summary}</li>')
            operations.append(f'<h2 id="{place}">{name}</h2><p>{summary}</p>{_bodies(operation)}')
    parts += ["<ul>", *index, "</ul>", *operations]
    for name, schema in document["components"]["schemas"].items():
        parts.append(f'<h2 id="{name}">{name}</h2>')
        parts.append(f"<p>{escape(schema.get('description', ''))}</p>")
        parts.append(_fields(schema))
    return _html(about["title"], "".join(parts))


def _bodies(operation: Mapping[str, Any]) -> str:
    rows = [
        _row(
            f"<code>{escape(one['name'])}</code> in the {one['in']}",
            _type(one["schema"]),
            escape(one.get("description", "")),
        )
        for one in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        rows.append(_row("body", _contents(operation["requestBody"]), ""))
    for status, answer in operation["responses"].items():
        rows.append(_row(status, _contents(answer), escape(answer["description"])))
    return f"<table>{''.join(rows)}</table>"


def _contents(part: Mapping[str, Any]) -> str:
    return "<br>".join(
        f"{escape(media)}: {_type(content['schema'])}" for media, content in part["content"].items()
    )


def _fields(schema: Mapping[str, Any]) -> str:
    rows = []
    for name, field in schema.get("properties", {}).items():
        mark = " (required)" if name in schema.get("required", ()) else ""
        named = f"<code>{escape(name)}</code>{mark}"
        rows.append(_row(named, _type(field), escape(field.get("description", ""))))
    return f"<table>{''.join(rows)}</table>"


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _type(schema: Mapping[str, Any]) -> str:
    """Returns a schema in a few words, with its limits."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kinds = schema.get("type", "any")
    text = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if "items" in schema:
        text += f" of {_type(schema['items'])}"
    limits = [
        f"{word} {json.dumps(schema[k])}"
        for k, word in _SHOWN_LIMITS.items()
        if k in schema and schema[k] not in _NO_LIMITS
    ]
    return ", ".join([text, *limits])


def _html(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
