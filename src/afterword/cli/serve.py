"""``afterword serve``: the server."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import msgspec
import rich_click as click
import sqlalchemy as sa
import uvloop

from afterword.cli.compose import open_service, retarget
from afterword.cli.ledger import CLOCKS, data_folder, identity, ledger_options
from afterword.cli.options import read_settings, setting_flags
from afterword.cli.server import (
    Server,
    ServerOptions,
    bind,
    inherited,
    is_loopback,
    load_tls,
    url_of,
)
from afterword.cli.terminal import Terminal
from afterword.completion.service import CompletionService
from afterword.config import Resolved, Settings
from afterword.core.errors import ConfigError
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.http.middleware import Observer
from afterword.ledger.database import parse_url, reading
from afterword.ledger.keys import any_key
from afterword.ledger.meter import Entrance
from afterword.ledger.opening import open_database, open_ledger

_log = logging.getLogger(__name__)

_WITHOUT_PASSWORD = re.compile(r"//[^@/]*@")
SWITCH_INTERVAL_S = 0.001
"""How long the event loop may have to wait for the engine's thread to let go of the interpreter."""


@click.command(short_help="Start the server.")
@setting_flags(
    "Models", "Network", "Engine", "Other servers", "Limits of a request", "Ledger", "Access"
)
@click.option(
    "--print-config", is_flag=True, help="Show every setting and its origin; start nothing."
)
def serve(*, print_config: bool, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Start the server: all of POST /v1/completions.

    Without options it serves a small embedded model on http://127.0.0.1:8000. Every option is
    also a key of a TOML file and a variable of the environment (--max-n, max_n,
    AFTERWORD_MAX_N); options come before the environment, that before the file.

    Ctrl-C or SIGTERM stops admission, finishes the answers under way and exits 0. SIGHUP reads
    keys, limits of a request, the log level, the certificate and the addresses of other servers
    again; servers whose addresses are gone finish what they have.
    """
    resolved = read_settings(given, os.environ)
    if print_config:
        click.echo(_settings_table(resolved))
        return
    terminal = Terminal()
    for name in resolved.unknown:
        terminal.say(f"{name} is not a setting and has no effect")
    _log_to_stderr(resolved.settings.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = resolved.settings
    load_tls(settings.certfile, settings.keyfile)
    with inherited(os.environ) or bind(
        settings.host, settings.port, reuse_port=settings.reuse_port
    ) as bound:
        engine = open_database(data_folder(settings), settings.database)
        entrance = check_entrance(settings, bound, engine, terminal)
        reread = partial(read_settings, given, os.environ)
        ground = Ground(settings, bound, engine, entrance, reread)
        with _tracing() if settings.otel else nullcontext() as observe:
            uvloop.run(_serve(ground, terminal, observe))


def _tracing() -> AbstractContextManager[Observer]:
    # Its packages are an extra.
    from afterword.cli.tracing import open_tracing  # noqa: PLC0415

    return open_tracing()


class Ground(msgspec.Struct, frozen=True):
    """What is decided and opened before there is a loop."""

    settings: Settings
    bound: socket.socket
    engine: sa.Engine
    entrance: Entrance
    reread: Callable[[], Resolved]


async def _serve(ground: Ground, terminal: Terminal, observe: Observer | None) -> None:
    settings, bound = ground.settings, ground.bound
    options = ledger_options(settings, ground.entrance)
    async with (
        open_ledger(
            ground.engine, options, identity(), clocks=CLOCKS, entropy=os.urandom
        ) as ledger,
        open_service(settings, terminal) as service,
    ):
        lifecycle = Lifecycle()
        app = create_app(
            service,
            lifecycle=lifecycle,
            clock=time.monotonic,
            entropy=os.urandom,
            keep_alive_s=settings.keep_alive_s,
            access=Access(
                ledger=ledger.meter,
                books=ledger.books,
                guarded=not settings.no_auth,
                origins=settings.origins(),
            ),
            observe=observe,
        )

        async def reload() -> None:
            changed = ground.reread().settings
            await retarget(service, changed.models)
            logging.getLogger("afterword").setLevel(changed.log_level.upper())
            service.limits = changed.limits()
            ledger.clerk.refresh()
            _log.info("keys, limits, log level and addresses of other servers were read again")

        url = url_of(bound, tls=settings.certfile is not None)
        server = Server(
            app,
            server_options(settings),
            lifecycle=lifecycle,
            on_ready=lambda: click.echo(_welcome(service, url)),
            on_reload=reload,
        )
        await server.serve([bound])


def check_entrance(
    settings: Settings, bound: socket.socket, engine: sa.Engine, terminal: Terminal
) -> Entrance:
    """Who gets in without a key. Raises ``ConfigError`` where that would be everybody.

    Nothing listens before this.
    """
    here = is_loopback(bound)
    if settings.no_auth:
        if not here:
            terminal.say("WARNING: no-auth: whoever reaches this address may use the server")
        return "open"
    with reading(engine) as connection:
        made = any_key(connection)
    if not here and not made:
        raise ConfigError(
            f"{settings.host} can be reached from other machines, and there is no key yet: "
            "`afterword keys create NAME` makes one (or --no-auth true lets everybody in)"
        )
    return "keys_if_any" if here else "keys"


def server_options(settings: Settings) -> ServerOptions:
    """What the settings say of connections."""
    return ServerOptions(
        grace_s=settings.shutdown_grace_s,
        read_timeout_s=settings.read_timeout_s,
        max_connections=settings.max_connections,
        certfile=settings.certfile,
        keyfile=settings.keyfile,
    )


def _welcome(service: CompletionService, url: str) -> str:
    """Where the server is, what it serves, and a line to try."""
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
            f"Afterword is ready on {url}",
            "Try it:",
            f"  curl {url}/v1/completions {header} -d '{json.dumps(request)}'",
        ]
    )


def _settings_table(resolved: Resolved) -> str:
    """One line for each setting: name, value as TOML would have it, origin."""
    values = msgspec.structs.asdict(resolved.settings)
    if values["database"] is not None:
        values["database"] = parse_url(values["database"]).render_as_string(hide_password=True)
    if values["redis"] is not None:
        values["redis"] = _WITHOUT_PASSWORD.sub("//***@", values["redis"])
    if resolved.settings.upstream_keys is not None:
        values["upstream_keys"] = dict.fromkeys(resolved.settings.upstream_keys, "***")
    values["aliases"] = dict(resolved.settings.effective_aliases())
    shown = {name: "-" if value is None else json.dumps(value) for name, value in values.items()}
    wide = max(map(len, shown))
    widest = max(map(len, shown.values()))
    lines = [f"{n:<{wide}}  {v:<{widest}}  {resolved.origins[n]}" for n, v in shown.items()]
    lines += [f"{name} is not a setting and has no effect" for name in resolved.unknown]
    return "\n".join(lines)


def _log_to_stderr(level: str) -> None:
    """Our own lines, and what uvicorn has to warn of; libraries keep their own ways."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name, least in (("afterword", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.setLevel(least)
        logger.addHandler(lines)
        logger.propagate = False
