"""Refuses grammars where more patterns must match one text than llguidance compiles in time.

It makes states for combinations of them: 20 short ones take seconds, and each four more twenty
times as long. No limit of its own ends that.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias
from urllib.parse import unquote

Schema: TypeAlias = Mapping[str, Any]

_MOST_PATTERNS = 10
_MOST_STEPS = 50_000
"""Half a second. A schema of usual shape takes four steps for each part."""
_ALTERNATIVES = ("anyOf", "oneOf")
_AND = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|(&)')
"""The sign between parts of a terminal; strings, patterns and comments are skipped."""
_EMBEDDED = re.compile(r"%json\b\s*")


def refuse_meeting_schemas(schema: object) -> None:
    """Raises ``ValueError`` if too many patterns and formats of a JSON Schema meet in one place."""
    try:
        _Meetings(schema).refuse()
    except RecursionError:
        raise ValueError("its alternatives are nested too deeply") from None


def refuse_meeting_terminals(grammar: str) -> None:
    """Raises ``ValueError`` if a Lark grammar has too many ``&``, or a schema that is refused."""
    if sum(1 for found in _AND.finditer(grammar) if found[1]) >= _MOST_PATTERNS:
        raise _too_many()
    for found in _EMBEDDED.finditer(grammar):
        try:
            schema, _ = json.JSONDecoder().raw_decode(grammar, found.end())
        except ValueError:
            continue  # llguidance says what is wrong with it
        refuse_meeting_schemas(schema)


class _Meetings:
    """The places of a schema, and what meets there."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._patterns: dict[int, frozenset[str]] = {}
        self._targets: dict[str, object] = {}
        self._steps = 0

    def refuse(self) -> None:
        places = [_schemas([self._root])]
        seen = set[frozenset[int]]()
        while places:
            self._step()
            place = places.pop()
            key = frozenset(map(id, place))
            if key in seen:
                continue
            seen.add(key)
            if len(self._meeting(place)) > _MOST_PATTERNS:
                raise _too_many()
            places += _children(self._with_parts(place, alternatives=True))

    def _meeting(self, schemas: Iterable[Schema]) -> frozenset[str]:
        """Returns what a text must match: of alternatives, those of the one with the most."""
        return frozenset(chain.from_iterable(map(self._patterns_of, self._with_parts(schemas))))

    def _patterns_of(self, schema: Schema) -> frozenset[str]:
        known = self._patterns.get(id(schema))
        if known is not None:
            return known
        self._patterns[id(schema)] = frozenset()  # for a reference back to here
        own = (schema.get(name) for name in ("pattern", "format"))
        found = frozenset(value for value in own if isinstance(value, str))
        for name in _ALTERNATIVES:
            branches = ([branch] for branch in _schemas(schema.get(name)))
            found |= max(map(self._meeting, branches), key=len, default=found)
        self._patterns[id(schema)] = found
        return found

    def _with_parts(
        self, schemas: Iterable[Schema], *, alternatives: bool = False
    ) -> Iterator[Schema]:
        """Yields schemas, what allOf and references add to each, and its alternatives if wanted."""
        waiting, seen = list(schemas), set[int]()
        while waiting:
            self._step()
            schema = waiting.pop()
            if id(schema) in seen:
                continue
            seen.add(id(schema))
            yield schema
            waiting += self._required(schema)
            for name in _ALTERNATIVES if alternatives else ():
                waiting += _schemas(schema.get(name))

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ValueError("its schemas refer to one another in too many ways")

    def _required(self, schema: Schema) -> list[Schema]:
        return [*_schemas(schema.get("allOf")), *_schemas([self._target(schema.get("$ref"))])]

    def _target(self, reference: object) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        if reference not in self._targets:
            self._targets[reference] = self._resolved(reference)
        return self._targets[reference]

    def _resolved(self, reference: str) -> object:
        value = self._root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                return None
        return value


def _children(together: Iterable[Schema]) -> Iterator[list[Schema]]:
    """Yields the schemas that meet in each place below schemas that meet."""
    named, placed = defaultdict[str, list[Schema]](list), defaultdict[int, list[Schema]](list)
    others: list[Schema] = []
    items: list[Schema] = []
    for schema in together:
        for name, child in _items(schema.get("properties")):
            named[name] += _schemas([child])
        for place, child in enumerate(_list(schema.get("prefixItems"))):
            placed[place] += _schemas([child])
        patterned = (child for _, child in _items(schema.get("patternProperties")))
        others += _schemas([*patterned, schema.get("additionalProperties")])
        items += _schemas([schema.get("items")])
    yield others
    yield items
    for children in named.values():
        yield [*children, *others]
    for children in placed.values():
        yield [*children, *items]


def _schemas(values: object) -> list[Schema]:
    return [value for value in _list(values) if isinstance(value, dict)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _items(value: object) -> Iterable[tuple[str, object]]:
    return value.items() if isinstance(value, dict) else ()


def _too_many() -> ValueError:
    return ValueError(f"more than {_MOST_PATTERNS} of its patterns meet in one place")
