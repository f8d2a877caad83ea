"""``afterword serve``: the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import rich_click as click

from afterword.cli import importing
from afterword.cli.logs import open_log
from afterword.cli.options import SettingsCommand, read_settings, setting_flags
from afterword.cli.sockets import bind, inherited, is_loopback, load_tls
from afterword.cli.terminal import Terminal
from afterword.config import Resolved, Settings
from afterword.core.machine import return_freed_memory

SWITCH_INTERVAL_S = 0.001
"""The longest wait of the event loop until the engine's thread releases the interpreter."""


@click.command(cls=SettingsCommand, short_help="Start the server.")
@setting_flags(
    "Models", "Network", "Engine", "Other servers", "Limits of a request", "Ledger", "Access"
)
@click.option(
    "--print-config", is_flag=True, help="Show every setting and its origin; start nothing."
)
def serve(*, print_config: bool, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Start the server: all of POST /v1/completions.

    Without options it serves a small embedded model on http://127.0.0.1:8000. Every option is
    also a key of a TOML file and an environment variable (--max-n, max_n, AFTERWORD_MAX_N).
    Options override the environment, and the environment overrides the file.

    Ctrl-C or SIGTERM stops admission, finishes running answers and exits with status 0. SIGHUP
    reads again: keys, limits of a request, the log level, the certificate and the addresses of
    other servers. Servers whose addresses are gone finish their requests.
    """
    resolved = read_settings(given, os.environ)
    if print_config:
        click.echo(_settings_table(resolved))
        return
    settings = resolved.settings
    # A reload that is asked for now waits until the server is ready. It would end the process.
    # Threads inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    terminal = open_log(settings.log_level, settings.log_format)
    for name in resolved.unknown:
        terminal.say(f"WARNING: {name} is not a setting and has no effect")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return_freed_memory()
    load_tls(settings.certfile, settings.keyfile)
    with inherited(os.environ) or bind(
        settings.host, settings.port, reuse_port=settings.reuse_port
    ) as bound:
        reread = partial(read_settings, given, os.environ)
        _serve(settings, bound, terminal, reread)


def _serve(
    settings: Settings, bound: socket.socket, terminal: Terminal, reread: Callable[[], Resolved]
) -> None:
    # Imports take most of a start. --help does not wait for them, and weights load meanwhile if
    # the server needs no keys.
    with importing():
        from afterword.compose.loading import Loading  # noqa: PLC0415

    with Loading(settings, terminal) as loading:
        if settings.no_auth or is_loopback(bound):
            loading.begin()
        with importing():
            from afterword.cli.serving import run  # noqa: PLC0415

        run(settings, bound, loading, terminal=terminal, reread=reread)


def _settings_table(resolved: Resolved) -> str:
    """Returns one line for each setting: name, value in TOML's notation, origin."""
    # A start imports the ledger while weights load.
    from afterword.cli.ledger import data_folder, places, without_password  # noqa: PLC0415
    from afterword.models.store import models_folder  # noqa: PLC0415

    values = msgspec.structs.asdict(resolved.settings)
    if values["database"] is not None:
        values["database"] = without_password(values["database"])
    # The folders that hold if none is set.
    values["data_dir"] = str(data_folder(resolved.settings).absolute())
    values["models_dir"] = str(models_folder(resolved.settings.models_dir).absolute())
    if values["redis"] is not None:
        values["redis"] = without_password(values["redis"])
    if resolved.settings.upstream_keys is not None:
        values["upstream_keys"] = dict.fromkeys(resolved.settings.upstream_keys, "***")
    values["aliases"] = {
        name: alias.written for name, alias in resolved.settings.effective_aliases().items()
    }
    shown = {name: "-" if value is None else json.dumps(value) for name, value in values.items()}
    wide = max(map(len, shown))
    widest = max(map(len, shown.values()))
    lines = [f"{n:<{wide}}  {v:<{widest}}  {resolved.origins[n]}" for n, v in shown.items()]
    lines += [f"{name:<{wide}}  {place}" for name, place in places(resolved.settings)]
    lines += [f"{name} is not a setting and has no effect" for name in resolved.unknown]
    return "\n".join(lines)
