"""Makes llguidance keep to a JSON Schema where it would allow more, or raises."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

_CONSTANTS = frozenset(("const", "enum"))
_DATA = _CONSTANTS.union(("default", "examples"))
"""Keywords whose values are no schemas."""
_NAMED = frozenset(("properties", "$defs", "definitions"))
"""Their keys are names, and no keywords."""
_NEGATED = re.compile(r"\\.|\[\^([\]-]?)", re.DOTALL)
"""What is escaped, or the start of a negated class and a sign that means itself only there."""


def strict(schema: object) -> str:
    """Returns the text of a JSON Schema of which llguidance allows nothing else.

    Raises ``ValueError`` if a constant cannot be kept.
    """
    return json.dumps(_strict(schema))


def without_null(pattern: str) -> str:
    r"""Returns a regular expression whose negated classes leave out the null character, too.

    llguidance writes a class with all controls as if it had quotes and backslashes: ``[^"]`` would
    allow ``\"`` in a JSON string.
    """
    return _NEGATED.sub(_negated, pattern)


def _negated(found: re.Match[str]) -> str:
    if found[0].startswith("\\"):
        return found[0]
    return r"[^\x00" + (f"\\{found[1]}" if found[1] else "")


def _strict(value: Any, name: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Returns the value of a key; ``name`` is empty where keys are names of the client's."""
    if name in _CONSTANTS:
        _refuse_inexact(value)
    if name in _DATA:
        return value
    if name == "pattern" and isinstance(value, str):
        return without_null(value)
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if not isinstance(value, dict):
        return value
    if name == "patternProperties":
        return {without_null(key): _strict(item) for key, item in value.items()}
    named = name in _NAMED
    return {key: _strict(item, "" if named else key) for key, item in value.items()}


def _refuse_inexact(value: Any) -> None:  # noqa: ANN401 - any JSON
    """Raises ``ValueError`` for a whole number that llguidance would write as another one."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_inexact(item)
    elif type(value) is int and Decimal(repr(float(value))) != value:
        raise ValueError("its const or enum has a whole number that doubles cannot keep")
