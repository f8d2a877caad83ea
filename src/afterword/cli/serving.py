"""A server's life once its settings are read and its socket is bound."""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
import uvloop

from afterword import playground
from afterword.cli import importing
from afterword.cli.files import allow_connections, files_each
from afterword.cli.ledger import CLOCKS, data_folder, identity, ledger_options, places
from afterword.cli.logs import ready_line
from afterword.cli.server import Server, ServerOptions
from afterword.cli.sockets import is_loopback, url_of
from afterword.cli.terminal import Terminal
from afterword.completion.service import CompletionService
from afterword.compose.loading import Loading
from afterword.compose.services import open_service, retarget, upstream_stats
from afterword.config import Resolved, Settings
from afterword.core.errors import ConfigError
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.http.middleware import Observer
from afterword.http.server.connection import Timeouts
from afterword.ledger.access import Entrance
from afterword.ledger.folder import make_folder
from afterword.ledger.open_ledger import open_ledger

if TYPE_CHECKING:
    from afterword.ledger.database import Database

_log = logging.getLogger(__name__)


def run(
    settings: Settings,
    bound: socket.socket,
    loading: Loading,
    *,
    terminal: Terminal,
    reread: Callable[[], Resolved],
) -> None:
    """Serve until a signal ends it. Raises ``ConfigError``."""
    database = _database(settings)
    entrance = check_entrance(settings, bound, database, terminal)
    most = _connections(settings, terminal)
    ground = Ground(settings, bound, loading, database, entrance, most, reread)
    with _tracing() if settings.otel else nullcontext() as observe:
        uvloop.run(_serve(ground, observe))


def _database(settings: Settings) -> Database | None:
    """The ledger's database; None if no key can exist yet."""
    folder = data_folder(settings)
    keyless = ledger_options(settings).keyless()
    if keyless or settings.database is not None:
        # It has the journal. Opening the file of a ledger does this too.
        make_folder(folder)
    if keyless:
        return None
    with importing():
        # All that an open ledger needs, while there is no loop to hold up.
        from afterword.ledger import database, database_ledger  # noqa: F401, PLC0415

    return database.open_database(folder, settings.database)


def _tracing() -> AbstractContextManager[Observer]:
    # OpenTelemetry is an extra.
    from afterword.cli.tracing import open_tracing  # noqa: PLC0415

    return open_tracing()


class Ground(msgspec.Struct, frozen=True):
    """Everything that is decided and opened before the event loop runs."""

    settings: Settings
    bound: socket.socket
    loading: Loading
    database: Database | None
    entrance: Entrance
    most_connections: int
    reread: Callable[[], Resolved]


async def _serve(ground: Ground, observe: Observer | None) -> None:
    settings, bound = ground.settings, ground.bound
    options = ledger_options(settings, ground.entrance)
    async with (
        open_ledger(
            ground.database,
            options,
            identity(keyless=ground.database is None),
            clocks=CLOCKS,
            entropy=os.urandom,
        ) as ledger,
        open_service(settings, ground.loading) as service,
    ):
        lifecycle = Lifecycle()
        app = create_app(
            service,
            lifecycle=lifecycle,
            clock=time.monotonic,
            entropy=os.urandom,
            keep_alive_s=settings.keep_alive_s,
            access=Access(
                ledger=ledger.access,
                queries=lambda: ledger.queries,
                guarded=not settings.no_auth,
                origins=settings.origins(),
                proxies=settings.proxies(),
                cache_scope=settings.cache_scope,
            ),
            public=playground.routes(),
            observe=observe,
            upstreams=partial(upstream_stats, service, settings.models),
        )

        async def reload() -> None:
            changed = ground.reread().settings
            await retarget(service, changed.models)
            logging.getLogger("afterword").setLevel(changed.log_level.upper())
            service.limits = changed.limits()
            ledger.refresh()
            _log.info("keys, limits, log level and addresses of other servers were read again")

        url = url_of(bound, tls=settings.certfile is not None)
        server = Server(
            app,
            server_options(settings, ground.most_connections),
            lifecycle=lifecycle,
            on_ready=lambda: click.echo(_welcome(service, settings, url)),
            on_reload=reload,
        )
        await server.serve([bound])


def check_entrance(
    settings: Settings, bound: socket.socket, engine: Database | None, terminal: Terminal
) -> Entrance:
    """Returns who needs no key. Raises ``ConfigError`` if other machines would need none.

    ``engine`` None: no key can exist. Nothing listens before this check.
    """
    here = is_loopback(bound)
    _warn_of_pages(settings, engine, terminal)
    if settings.no_auth:
        if not here:
            terminal.say("WARNING: no-auth: everybody who reaches this address may use the server")
        return "open"
    if not here and (engine is None or not _has_key(engine)):
        raise ConfigError(
            f"{settings.host} can be reached from other machines, and there is no key yet: "
            "`afterword keys create NAME` makes one (or --no-auth lets everybody in)"
        )
    return "keys_if_any" if here else "keys"


def _warn_of_pages(settings: Settings, engine: Database | None, terminal: Terminal) -> None:
    """Say what origins that stand for many pages mean while no key is needed."""
    wide = [origin for origin in ("*", "null") if origin in settings.origins()]
    if wide and (settings.no_auth or engine is None or not _has_key(engine)):
        terminal.say(
            f"WARNING: cors-origins {wide[0]} without a key: every page that a browser which "
            "reaches this server opens may use it and read its answers"
        )


def _has_key(engine: Database) -> bool:
    from afterword.ledger.database import reading  # noqa: PLC0415 - as above
    from afterword.ledger.keys import any_key  # noqa: PLC0415

    with reading(engine) as connection:
        return any_key(connection)


def _connections(settings: Settings, terminal: Terminal) -> int:
    """Returns how many connections the server takes. Says so if files allow fewer than wanted."""
    most = settings.max_connections
    fit = allow_connections(most, each=files_each(settings.models.values()))
    if fit < most:
        terminal.say(
            f"max_connections is {most}, but the process may not open enough files for them: at "
            f"most {fit} are taken. Raise the limit on open files (ulimit -n, LimitNOFILE=)"
        )
    return fit


def server_options(settings: Settings, most_connections: int) -> ServerOptions:
    """The settings of connections."""
    return ServerOptions(
        grace_s=settings.shutdown_grace_s,
        timeouts=Timeouts(read_s=settings.read_timeout_s, write_s=settings.write_timeout_s),
        max_connections=most_connections,
        certfile=settings.certfile,
        keyfile=settings.keyfile,
    )


def _welcome(service: CompletionService, settings: Settings, url: str) -> str:
    """Returns what a server prints at its start: its models, its URL, a line to try."""
    if settings.log_format == "json":
        return ready_line(
            {"url": url, "models": list(settings.models), "note": _endless(settings)}
            | dict(places(settings))
        )
    lines = []
    for served in service.catalog.engines:
        card = served.engine.card
        facts = ", ".join(f"{name} {value}" for name, value in card.details.items())
        lines.append(f"{served.name}: context {card.context_tokens}, {facts}")
    request = {
        "model": service.catalog.default.name,
        "prompt": "Say this is a test",
        "max_tokens": 7,
        "temperature": 0,
    }
    header = "-H 'Content-Type: application/json'"
    return "\n".join(
        [
            *lines,
            _endless(settings),
            f"Afterword is ready on {url}",
            "Try it:",
            f"  curl {shlex.quote(f'{url}/v1/completions')} {header} -d '{json.dumps(request)}'",
        ]
    )


def _endless(settings: Settings) -> str:
    """Returns what a request without max_tokens gets."""
    default = settings.default_max_tokens
    if default is not None:
        return f"Without max_tokens an answer ends after {default} tokens (--default-max-tokens)."
    return (
        "Without max_tokens an answer goes on until the model ends or the context is full; "
        "--default-max-tokens N sets another default."
    )
