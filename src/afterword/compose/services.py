"""The composition root: settings and loaded files become engines, a catalog and a service."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.old_tokens import OldTokens
from afterword.completion.service import CompletionService
from afterword.compose.loading import Loading
from afterword.config import Settings
from afterword.core.alias import Alias
from afterword.core.errors import ConfigError
from afterword.core.protocols import Engine
from afterword.engine.llama.engine import start_engine
from afterword.gateway.address import Address, is_remote, parse_addresses
from afterword.models.package import Progress
from afterword.models.source import with_home
from afterword.models.tiktoken_files import read_tiktoken

if TYPE_CHECKING:
    from afterword.gateway.engine import RemoteEngine
    from afterword.gateway.pool.upstream import UpstreamStats


@asynccontextmanager
async def load_service(
    settings: Settings, progress: Progress, *, probe: bool = True, fresh: bool = False
) -> AsyncIterator[CompletionService]:
    """Load and open the models; see ``Loading`` and ``open_service``. Raises ``ConfigError``."""
    with Loading(settings, progress, probe=probe, fresh=fresh) as loading:
        async with open_service(settings, loading) as service:
            yield service


@asynccontextmanager
async def open_service(settings: Settings, loading: Loading) -> AsyncIterator[CompletionService]:
    """Open every model in order and close them at the end. Raises ``ConfigError``."""
    aliases = settings.effective_aliases()
    vocabularies = _vocabularies(settings, aliases)
    loading.begin()
    async with AsyncExitStack() as opened:
        served: list[ServedModel] = []
        for name in settings.models:
            engine: Engine
            if name in loading.addresses:
                engine = await _open_remote(name, loading.addresses[name], settings)
                created = int(time.time())
            else:
                path, model = await loading.take(name)
                engine = start_engine(model, loading.options)
                created = int(path.stat().st_mtime)
            opened.push_async_callback(engine.aclose)
            served.append(ServedModel(name, engine, created))
        try:
            catalog = Catalog(served, aliases, vocabularies)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        yield CompletionService(catalog, settings.limits(), clock=time.time, entropy=os.urandom)


def _vocabularies(settings: Settings, aliases: Mapping[str, Alias]) -> Mapping[str, OldTokens]:
    """Returns OpenAI's vocabularies that aliases name. Raises ``ConfigError``."""
    names = dict.fromkeys(alias.tokens for alias in aliases.values() if alias.tokens is not None)
    if not names:
        return {}
    folder = settings.tiktoken_dir or os.environ.get("TIKTOKEN_CACHE_DIR")
    if folder is None:
        raise ConfigError(
            f"tokens={next(iter(names))}: name the folder of tiktoken's files (--tiktoken-dir or "
            "TIKTOKEN_CACHE_DIR)"
        )
    path = with_home(folder)
    return {name: OldTokens(name, read_tiktoken(name, path)) for name in names}


def upstream_stats(
    service: CompletionService, models: Mapping[str, str]
) -> list[tuple[str, UpstreamStats]]:
    """Returns the figures of all upstreams, each with the name of its model."""
    if not any(map(is_remote, models.values())):
        return []
    from afterword.gateway.engine import RemoteEngine  # noqa: PLC0415 - as below

    return [
        (served.name, stats)
        for served in service.catalog.engines
        if isinstance(served.engine, RemoteEngine)
        for stats in served.engine.upstream_stats()
    ]


async def retarget(service: CompletionService, models: Mapping[str, str]) -> None:
    """Set the addresses of models behind upstreams; other changes wait for the next start.

    ``models`` are sources by name. Raises ``ConfigError`` if an address is malformed or does not
    serve its model, before any change.
    """
    there = {name: parse_addresses(text) for name, text in models.items() if is_remote(text)}
    if not there:
        return
    from afterword.gateway.engine import RemoteEngine  # noqa: PLC0415 - as below

    changes = [
        await served.engine.prepare(there[served.name])
        for served in service.catalog.engines
        if isinstance(served.engine, RemoteEngine) and served.name in there
    ]
    for change in changes:
        change()


async def _open_remote(name: str, addresses: Sequence[Address], settings: Settings) -> RemoteEngine:
    # A server without upstreams does not import the gateway.
    from afterword.gateway.engine import open_remote  # noqa: PLC0415
    from afterword.gateway.pool.pool import PoolOptions  # noqa: PLC0415

    options = PoolOptions(
        key=(settings.upstream_keys or {}).get(name),
        connect_s=settings.upstream_connect_s,
        first_token_s=settings.upstream_first_token_s,
        silence_s=settings.upstream_silence_s,
        probe_s=settings.upstream_probe_s,
        patience_s=settings.upstream_patience_s,
        round_s=settings.upstream_round_ms / 1000,
    )
    return await open_remote(name, addresses, options=options, max_waiting=settings.max_waiting)
