"""``afterword serve``: the server."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import rich_click as click
import uvloop

from afterword.cli.compose import open_service, retarget
from afterword.cli.options import read_settings, setting_flags
from afterword.cli.server import Server, bind, url_of
from afterword.cli.terminal import Terminal
from afterword.completion.service import CompletionService
from afterword.config import Resolved, Settings
from afterword.http.app import create_app
from afterword.http.lifecycle import Lifecycle

SWITCH_INTERVAL_S = 0.001
"""How long the event loop may have to wait for the engine's thread to let go of the interpreter."""


@click.command(short_help="Start the server.")
@setting_flags("Models", "Network", "Engine", "Other servers", "Limits of a request")
@click.option(
    "--print-config", is_flag=True, help="Show every setting and its origin; start nothing."
)
def serve(*, print_config: bool, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Start the server: all of POST /v1/completions.

    Without options it serves a small embedded model on http://127.0.0.1:8000. Every option is
    also a key of a TOML file and a variable of the environment (--max-n, max_n,
    AFTERWORD_MAX_N); options come before the environment, that before the file.

    Ctrl-C or SIGTERM stops admission, finishes the answers under way and exits 0. SIGHUP reads
    the settings again and lets other servers whose addresses are gone finish what they have.
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
    with bind(resolved.settings.host, resolved.settings.port) as bound:
        again = partial(read_settings, given, os.environ)
        uvloop.run(_serve(resolved.settings, terminal, bound, again))


async def _serve(
    settings: Settings, terminal: Terminal, bound: socket.socket, again: Callable[[], Resolved]
) -> None:
    async with open_service(settings, terminal) as service:
        lifecycle = Lifecycle()
        app = create_app(
            service,
            lifecycle=lifecycle,
            clock=time.monotonic,
            entropy=os.urandom,
            keep_alive_s=settings.keep_alive_s,
        )
        server = Server(
            app,
            lifecycle=lifecycle,
            grace_s=settings.shutdown_grace_s,
            on_ready=lambda: click.echo(_welcome(service, url_of(bound))),
            on_hangup=lambda: retarget(service, again),
        )
        await server.serve([bound])


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
