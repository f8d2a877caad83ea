"""Two hundred JSON Schemas as applications write them: twenty things, each in ten shapes."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

SHORT: Schema = {"type": "string", "maxLength": 12}
WORD: Schema = {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 500}
PRICE: Schema = {"type": "number", "minimum": 0, "maximum": 999}
FLAG: Schema = {"type": "boolean"}
DATE: Schema = {"type": "string", "format": "date"}


def one_of(*values: str | int | None) -> Schema:
    return {"enum": list(values)}


def few(items: Schema, most: int = 2) -> Schema:
    return {"type": "array", "items": items, "maxItems": most}


def record(**fields: Schema) -> Schema:
    return {
        "type": "object", "properties": fields, "required": list(fields),
        "additionalProperties": False,
    }  # fmt: skip


ADDRESS = record(street=SHORT, city=WORD, zip={"type": "string", "pattern": "^[0-9]{5}$"})
THINGS: dict[str, Schema] = {
    "order": record(id=COUNT, state=one_of("open", "paid", "sent"), total=PRICE),
    "order_line": record(sku={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, quantity=COUNT),
    "address": ADDRESS,
    "person": record(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 120}),
    "customer": record(name=WORD, email={"type": "string", "format": "email", "maxLength": 30}),
    "company": record(name=WORD, address=ADDRESS),
    "invoice": record(number=COUNT, due=DATE, paid=FLAG),
    "event": record(title=SHORT, at={"type": "string", "format": "date-time"}),
    "meeting": record(day=DATE, people=few(WORD)),
    "product": record(name=SHORT, price=PRICE, tags=few(one_of("new", "sale", "old"))),
    "review": record(stars=one_of(1, 2, 3, 4, 5), text=SHORT),
    "sentiment": record(label=one_of("positive", "neutral", "negative"), score=PRICE),
    "extraction": record(names=few(WORD, 3), places=few(WORD, 3)),
    "ticket": record(severity=one_of("low", "high"), owner={"anyOf": [WORD, {"type": "null"}]}),
    "host": record(name=WORD, ip={"type": "string", "format": "ipv4"}),
    "resource": record(id={"type": "string", "format": "uuid"}, size=COUNT),
    "recipe": record(title=SHORT, steps=few(SHORT, 2), minutes=COUNT),
    "weather": record(celsius={"type": "integer", "minimum": -60}, sky=one_of("clear", "rain")),
    "function_call": record(name=one_of("search", "open"), arguments=record(query=SHORT)),
    "setting": record(key=SHORT, value={"anyOf": [FLAG, COUNT, {"type": "null"}]}),
}  # fmt: skip


def shapes_of(name: str, thing: Schema) -> dict[str, Schema]:
    first = next(iter(thing["properties"]))
    optional = {**thing, "required": [first]}
    return {
        "plain": thing,
        "list": few(thing),
        "optional": optional,
        "nullable": {"anyOf": [thing, {"type": "null"}]},
        "nested": record(data=record(**{name: thing}), ok=FLAG),
        "referenced": {
            "$defs": {"thing": thing},
            **record(first={"$ref": "#/$defs/thing"}, more=few({"$ref": "#/$defs/thing"}, 1)),
        },
        "union": {
            "oneOf": [
                record(kind={"const": "found"}, value=thing),
                record(kind={"const": "error"}, message=SHORT),
            ]
        },
        "pair": {
            "type": "array", "prefixItems": [WORD, thing], "minItems": 2, "maxItems": 2,
            "items": False,
        },
        "map": {"type": "object", "additionalProperties": thing, "maxProperties": 2},
        "page": record(items=few(thing, 1), next={"anyOf": [COUNT, {"type": "null"}]}),
    }  # fmt: skip


SCHEMAS: dict[str, Schema] = {
    f"{name}, {shape}": schema
    for name, thing in THINGS.items()
    for shape, schema in shapes_of(name, thing).items()
}
