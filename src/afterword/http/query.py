"""The parameters of a URL's query, of which none is ignored (R18, R19)."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.types import Scope

from afterword.core.errors import InvalidRequest

AZURES_VERSION = "api-version"
"""Azure's clients name a version of its interface, of which there is one here."""
_SHOWN_CHARACTERS = 100


def check_query(scope: Scope, *known: str) -> None:
    """Raises ``InvalidRequest`` for a parameter that is not known, or that is there twice."""
    if not scope["query_string"]:
        return
    left = set(known)
    for name, _ in QueryParams(scope["query_string"]).multi_items():
        if name not in left:
            what = "Duplicate" if name in known else "Unrecognized"
            short = name[:_SHOWN_CHARACTERS]
            raise InvalidRequest(f"{what} query parameter supplied: {short}", param=short)
        left.remove(name)
