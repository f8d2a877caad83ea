"""Flags of settings, made from ``config.SETTINGS`` and shared by all commands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import rich_click as click

from afterword.compose.naming import named_model
from afterword.config import SETTINGS, Resolved, Setting, resolve
from afterword.core.errors import ConfigError
from afterword.gateway.address import is_remote

Command = TypeVar("Command", bound=Callable[..., Any])

_BY_FLAG = {setting.flag.removeprefix("--"): setting for setting in SETTINGS.values()}


class SettingsCommand(click.RichCommand):
    """A command whose switches accept ``true`` or ``false`` after them, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read ``--no-auth true`` as ``--no-auth``, and ``--no-auth false`` as ``--auth``."""
        plain: list[str] = []
        for arg in args:
            setting = _BY_FLAG.get(plain[-1].removeprefix("--")) if plain else None
            if setting is not None and setting.is_switch and arg in {"true", "false"}:
                plain[-1] = setting.flag if arg == "true" else setting.opposite
            else:
                plain.append(arg)
        return super().parse_args(ctx, plain)


def setting_flags(*panels: str, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Returns a decorator that adds ``--config`` and the flags of some panels to a command.

    ``without`` names settings that have no effect there.
    """

    def decorate(command: Command) -> Command:
        for panel in reversed(panels):
            settings = [
                setting
                for setting in SETTINGS.values()
                if setting.panel == panel
                and setting.value is not None
                and setting.name not in without
            ]
            flags = [setting.flag for setting in settings]
            command = click.option_panel(panel, options=flags)(command)
            for setting in reversed(settings):
                command = _flag(setting)(command)
        return click.option("--config", metavar="FILE", help="A TOML file of settings.")(command)

    return decorate


def read_settings(given: Mapping[str, Any], environment: Mapping[str, str]) -> Resolved:
    """Returns the settings from flags, environment and file. Raises ``ConfigError``."""
    flags: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == () or name == "config":
            continue
        flags[name] = _pairs(SETTINGS[name], value) if SETTINGS[name].is_table else value
    return resolve(flags, environment, given.get("config"))


def _flag(setting: Setting) -> Callable[[Command], Command]:
    text = f"{setting.help} [default: {setting.default}]"
    if setting.is_switch:
        names = f"{setting.flag}/{setting.opposite}"
        return click.option(names, setting.name, help=text, default=None)
    return click.option(
        setting.flag,
        setting.name,
        metavar=setting.value,
        help=text,
        multiple=setting.is_table,
        type=str,
    )


def _pairs(setting: Setting, values: Sequence[str]) -> dict[str, str]:
    """Returns the pairs of a repeated flag. Each value is one pair; its right side may have commas.

    A model's source without a name gets its label as the name.
    """
    name = setting.flag.removeprefix("--")
    pairs: dict[str, str] = {}
    for value in values:
        left, _, right = value.partition("=")
        if name == "model":
            left, right = named_model(value)
        if not left or not right:
            raise ConfigError(f"--{name} {value!r} is not {setting.value}")
        if name == "model" and is_remote(right) and is_remote(pairs.get(left, "")):
            right = f"{pairs.pop(left)} {right}"
        if left in pairs:
            raise ConfigError(f"--{name} {left!r} is given twice")
        pairs[left] = right
    return pairs
