"""Who shares what was computed for a prompt, and whose turn long work takes."""

from __future__ import annotations

from typing import Literal, TypeAlias

from afterword.completion.service import Caller
from afterword.core.account import Principal
from afterword.http.exchange import Exchange

CacheScope: TypeAlias = Literal["all", "principal", "key"]
"""``all`` share; keys whose names agree up to the first slash share; each key has its own."""


def caller_of(exchange: Exchange, scope: CacheScope) -> Caller:
    """Returns the caller of a request: its key, or its address if it has none."""
    principal = exchange.principal
    return Caller(principal.key_id or exchange.client, _cache_scope(principal, scope))


def _cache_scope(principal: Principal, scope: CacheScope) -> str:
    if scope == "all" or principal.key_id is None:
        return ""
    if scope == "principal":
        return f"principal {principal.name.partition('/')[0]}"
    return f"key {principal.key_id}"
