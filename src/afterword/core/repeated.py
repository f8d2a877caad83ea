"""Names that stand twice in a JSON object, where a reader keeps the last in silence (R19)."""

from __future__ import annotations

import json
from typing import Any


def repeated_name(written: str | bytes, *, nested: bool) -> str | None:
    """Returns a name that stands twice in the outermost object, or, ``nested``, in any.

    Raises ``ValueError`` or ``RecursionError`` for what is no JSON.
    """
    innermost_first: list[list[tuple[str, Any]]] = []
    json.loads(written, object_pairs_hook=innermost_first.append)
    for pairs in innermost_first if nested else innermost_first[-1:]:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                return name
            seen.add(name)
    return None
