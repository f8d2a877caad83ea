"""Many clients against limits, on one server and on two: exactly the allowed requests pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.crowd import EACH_TOKENS, Place, crowd


@pytest.mark.parametrize("servers", [1, 2])
async def test_admitted_is_allowed(
    tmp_path: Path, database_url: str, redis_url: str, servers: int
) -> None:
    """``benchmarks/metering.py`` does it with 1,000 keys, 10,000 requests and 200 clients."""
    redis = redis_url if servers > 1 else None
    place = Place(tmp_path, database_url, redis)
    came = await crowd(place, servers=servers, keys=30, requests=300, clients=60)
    assert (came.admitted, came.refused) == (came.allowed, 300 - came.allowed)
    assert came.recorded == came.admitted
    assert came.tokens == came.admitted * EACH_TOKENS
    assert (came.left, list(came.wrong)) == (0, [])
