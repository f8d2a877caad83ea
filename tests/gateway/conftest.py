"""A fixture that makes engines in front of stand-ins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from afterword.gateway.dialects.dialect import Facts
from afterword.gateway.engine import RemoteEngine
from afterword.gateway.pool.pool import PoolOptions
from standins.server import FACTS, StandIn
from standins.upstreams import PATIENT, Front, engine_of


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    """Makes engines in front of stand-ins or addresses; closes them at the end."""
    async with AsyncExitStack() as opened:

        def make(
            *upstreams: StandIn | str,
            facts: Facts = FACTS,
            options: PoolOptions = PATIENT,
            max_waiting: int = 256,
        ) -> RemoteEngine:
            addresses = [u if isinstance(u, str) else u.address for u in upstreams]
            made = engine_of(
                " ".join(addresses), [facts] * len(addresses), options=options,
                max_waiting=max_waiting,
            )  # fmt: skip
            opened.push_async_callback(made.aclose)
            return made

        yield make
