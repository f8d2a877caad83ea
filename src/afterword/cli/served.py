"""The models of a command: files that it opens, or those of a server at ``--url``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import rich_click as click
from click.core import ParameterSource
from click.globals import get_current_context

from afterword.cli.options import Command, read_settings, setting_flags
from afterword.cli.terminal import Terminal, printable
from afterword.config import SETTINGS, Settings
from afterword.core.errors import ApiError
from afterword.library.backend import Opener
from afterword.library.local import loading
from afterword.library.opened import TIMEOUT_S
from afterword.library.patience import Patience

KEY_VARIABLE = "AFTERWORD_KEY"


def model_flags(command: Command) -> Command:
    """Add the flags that say which models a command asks."""
    command = click.option(
        "--key",
        envvar=KEY_VARIABLE,
        metavar="KEY",
        help=f"The key for --url. {KEY_VARIABLE} keeps it out of the list of processes.",
    )(command)
    command = click.option(
        "--url",
        metavar="URL",
        help="Ask the Afterword server there. --model then names models of the server, which has "
        "its own settings.",
    )(command)
    # A model is asked by its own name.
    return setting_flags("Models", "Engine", without=("aliases", "tiktoken_dir"))(command)


def openers(
    given: dict[str, Any],
    *,
    probe: bool = True,
    usual: Mapping[str, str] | None = None,
    patient: bool = False,
) -> Sequence[Opener]:
    """Returns what opens each model that the flags name, in order. Takes its flags out of given.

    ``usual`` are flags for those that were not given. With ``patient`` a server at a limit is
    waited for as long as it says. Raises ``ConfigError``.
    """
    url, key = given.pop("url"), given.pop("key")
    if url is not None:
        _refuse_settings(given)
        # A server's start needs no client of HTTP.
        from afterword.library.remote import connecting  # noqa: PLC0415

        names: Sequence[str | None] = given["models"] or (None,)
        patience = partial(Patience, TIMEOUT_S, told=_Once()) if patient else Patience
        return [
            connecting(url, key=key, model=name, timeout_s=TIMEOUT_S, patience=patience)
            for name in names
        ]
    source = get_current_context().get_parameter_source("key")
    if source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--key is for --url")
    for name, value in (usual or {}).items():
        given[name] = given[name] or value
    settings = read_settings(given, os.environ).settings
    return [one_loading(settings, name, probe=probe) for name in settings.models]


class _Once:
    """Says on standard error why a command waits, once."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, error: ApiError) -> None:
        if not self._said:
            self._said = True
            Terminal().say(f"waiting, as the server says: {printable(error.message)}")


def _refuse_settings(given: Mapping[str, Any]) -> None:
    """Raises ``UsageError`` for a setting that a server at ``--url`` has itself."""
    for name, value in given.items():
        if name != "models" and value is not None and value != ():
            flag = SETTINGS[name].flag if name in SETTINGS else f"--{name}"
            raise click.UsageError(f"{flag} has no effect with --url: the server has its own")


def one_loading(settings: Settings, name: str, *, probe: bool) -> Opener:
    """Returns what loads one model of some settings."""
    alone = msgspec.structs.replace(
        settings, models={name: settings.models[name]}, aliases={}, require_model=False
    )
    return loading(alone, Terminal(), probe=probe)
