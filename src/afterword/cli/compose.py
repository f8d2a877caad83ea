"""The composition root: settings become engines, a catalog and a service."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from afterword.cli.sources import Store, parse_source
from afterword.cli.terminal import Terminal
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.config import Settings
from afterword.core.errors import ConfigError
from afterword.core.protocols import Engine
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.llama.examination import Subject
from afterword.engine.llama.gguf import read_header
from afterword.engine.llama.machine import memory_limit
from afterword.engine.llama.preparing import Prepared, prepare
from afterword.engine.remote.address import Address, is_remote, parse_addresses

if TYPE_CHECKING:
    from afterword.engine.remote.engine import RemoteEngine


@asynccontextmanager
async def open_service(
    settings: Settings, terminal: Terminal, *, probe: bool = True
) -> AsyncIterator[CompletionService]:
    """Fetch, check and open every model; close them at the end. Raises ``ConfigError``.

    ``probe`` asks each engine at start whether answers depend on what else is served.
    """
    store = Store(settings.models_dir, terminal)
    # All files are looked at before the first is loaded: what is wrong is said at once.
    sources = {
        name: parse_addresses(source) if is_remote(source) else checked(store, settings, name)
        for name, source in settings.models.items()
    }
    async with AsyncExitStack() as opened:
        served: list[ServedModel] = []
        for name, source in sources.items():
            engine: Engine
            if isinstance(source, Subject):
                wanted = settings.effective_weights(name)
                prepared = prepare(store.weights, source, wanted, terminal.say)
                engine = _open(name, source, prepared, settings, probe=probe)
                created = int(source.path.stat().st_mtime)
            else:
                engine = await _open_remote(name, source, settings)
                created = int(time.time())
            opened.push_async_callback(engine.aclose)
            served.append(ServedModel(name, engine, created))
        catalog = Catalog(served, settings.effective_aliases())
        yield CompletionService(catalog, settings.limits(), clock=time.time, entropy=os.urandom)


async def retarget(service: CompletionService, models: Mapping[str, str]) -> None:
    """Serve models of other servers from the addresses there now; what else changed waits.

    ``models`` are sources by name. Raises ``ConfigError``, and then nothing has changed.
    """
    there = {name: parse_addresses(text) for name, text in models.items() if is_remote(text)}
    if not there:
        return
    from afterword.engine.remote.engine import RemoteEngine  # noqa: PLC0415 - as below

    for served in service.catalog.engines:
        if isinstance(served.engine, RemoteEngine) and served.name in there:
            await served.engine.retarget(there[served.name])


async def _open_remote(name: str, addresses: Sequence[Address], settings: Settings) -> RemoteEngine:
    # Who serves files need not wait for the client of other servers.
    from afterword.engine.remote.engine import open_remote  # noqa: PLC0415
    from afterword.engine.remote.pool import PoolOptions  # noqa: PLC0415

    options = PoolOptions(
        key=(settings.upstream_keys or {}).get(name),
        connect_s=settings.upstream_connect_s,
        first_token_s=settings.upstream_first_token_s,
        silence_s=settings.upstream_silence_s,
        probe_s=settings.upstream_probe_s,
        patience_s=settings.upstream_patience_s,
    )
    return await open_remote(name, addresses, options=options, max_waiting=settings.max_waiting)


def checked(store: Store, settings: Settings, name: str) -> Subject:
    """The file of a model, fetched and looked at, as these settings will run it."""
    file = store.fetch(parse_source(settings.models[name]))
    header = read_header(file.path)
    trained = header.context_tokens
    if settings.ctx is not None and trained is not None and settings.ctx > trained:
        raise ConfigError(
            f"model {name}: a context of {settings.ctx} tokens is larger than the model's, "
            f"which is {trained}"
        )
    return Subject(
        path=file.path,
        digest=file.digest,
        header=header,
        threads=settings.threads or len(os.sched_getaffinity(0)),
        exact=settings.kv == "exact",
        memory_bytes=memory_limit(),
    )


def _open(
    name: str, file: Subject, prepared: Prepared, settings: Settings, *, probe: bool
) -> BatchingEngine:
    # Loading the native library takes time that --help and --print-config need not spend.
    from afterword.engine.llama.engine import EngineOptions, open_engine  # noqa: PLC0415

    options = EngineOptions(
        ctx=settings.ctx,
        slots=settings.slots,
        threads=settings.threads,
        exact=settings.kv == "exact",
        probe=probe,
        max_waiting=settings.max_waiting,
        score_cache_bytes=settings.score_cache_mib * 2**20,
        target_gap_ms=settings.target_gap_ms,
        prompt_lookup=settings.prompt_lookup,
    )
    return open_engine(
        prepared.path,
        digest=file.digest,
        name=name,
        options=options,
        weights=prepared.weights,
    )
