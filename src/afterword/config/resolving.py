"""Settings with their origins: flags, the environment, a TOML file, the defaults."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from afterword.config.declared import FIELDS, SETTINGS, TABLES
from afterword.config.settings import Layers, Settings, alias_of
from afterword.core.errors import ConfigError

_PREFIX = "AFTERWORD_"
_NOT_SETTINGS = ("kernels", "native_path", "native_variant", "key")
"""Variables that the native half reads (docs/native.md), and the key of commands with --url."""


class Resolved(msgspec.Struct, frozen=True):
    """Settings, and where the value of each came from.

    ``unknown`` are variables of the environment that look like settings but are not.
    """

    settings: Settings
    origins: Mapping[str, str]
    unknown: tuple[str, ...] = ()


_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_HEADER_TEXT = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def is_model_name(text: str) -> bool:
    """Returns whether a model may have this name."""
    return _MODEL_NAME.fullmatch(text) is not None


def resolve(
    flags: Mapping[str, Any], environment: Mapping[str, str], config: str | None = None
) -> Resolved:
    """Returns the settings: defaults, then a TOML file, then the environment, then flags.

    A later layer replaces a value as a whole. ``flags`` has the values that were given. ``config``
    is the TOML file that a flag names; without it, ``AFTERWORD_CONFIG`` names one. Raises
    ``ConfigError``.
    """
    path = config or environment.get(f"{_PREFIX}CONFIG")
    layers: list[tuple[Mapping[str, Any], Mapping[str, str]]] = []
    if path is not None:
        layers.append(_from_file(Path(path)))
    layers.append(_from_environment(environment))
    layers.append((flags, {name: SETTINGS[name].flag for name in flags}))
    values: dict[str, Any] = {}
    origins = dict.fromkeys(FIELDS, "default")
    for layer, places in layers:
        for name, value in layer.items():
            values[name] = _convert(name, value, places[name])
            origins[name] = places[name]
    settings = Settings(**values)
    _check_names(settings, origins)
    # So that --print-config finds what a server would refuse.
    settings.origins()
    settings.proxies()
    return Resolved(settings, origins, _unknown(environment))


def _parse_pairs(text: str, *, what: str) -> dict[str, str]:
    """Returns ``NAME=VALUE,NAME=VALUE`` as a table. Raises ``ConfigError``."""
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"{what}: {_shown(part, what)} is not NAME=VALUE")
        if name in pairs:
            raise ConfigError(f"{what}: {name!r} is given twice")
        pairs[name] = value
    return pairs


def _from_file(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    for name in values:
        if name not in FIELDS:
            raise ConfigError(f"{path}: unknown setting {name!r}{nearest(name)}")
    return values, dict.fromkeys(values, str(path))


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name in FIELDS:
        variable = _PREFIX + name.upper()
        text = environment.get(variable)
        if text is None:
            continue
        values[name] = _parse_pairs(text, what=variable) if name in TABLES else text
        places[name] = variable
    return values, places


def _unknown(environment: Mapping[str, str]) -> tuple[str, ...]:
    known = {_PREFIX + name.upper() for name in (*FIELDS, "config", *_NOT_SETTINGS)}
    return tuple(
        name for name in sorted(environment) if name.startswith(_PREFIX) and name not in known
    )


_OF_TEXTS = {
    "int, got str": "a whole number",
    "float, got str": "a number",
    "bool, got str": "true or false",
}


def _convert(name: str, value: object, place: str) -> Any:  # noqa: ANN401 - of the field's type
    """Returns a value as its field's type. Text is parsed. Raises ``ConfigError``."""
    try:
        return msgspec.convert(value, FIELDS[name], strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{place}: {name} = {_shown(value, name)}: expected {_expected(name, error)}"
        ) from error
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {name} has bytes that are no text") from error


def _expected(name: str, error: msgspec.ValidationError) -> str:
    kind = SETTINGS[name].type
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if kind == Layers:
        return "a number from 0 on, or 'auto'"
    expected = str(error).replace("`", "").removeprefix("Expected ")
    return _OF_TEXTS.get(expected, expected)


def _check_names(settings: Settings, origins: Mapping[str, str]) -> None:
    place = origins["models"]
    if not settings.models:
        raise ConfigError(f"{place}: no model to serve")
    for name in settings.models:
        if not is_model_name(name):
            raise ConfigError(f"{place}: {name!r} cannot be a model's name")
    for alias, text in (settings.aliases or {}).items():
        model = alias_of(alias, text).model
        if model not in settings.models:
            known = ", ".join(settings.models)
            raise ConfigError(
                f"{origins['aliases']}: alias {alias!r}: no model {model!r} (there is {known})"
            )
        if alias in settings.models:
            raise ConfigError(f"{origins['aliases']}: alias {alias!r} is a model's name")
    _check_keys(settings, origins["upstream_keys"])


def _check_keys(settings: Settings, place: str) -> None:
    for name, key in (settings.upstream_keys or {}).items():
        if name not in settings.models:
            raise ConfigError(f"{place}: a key for {name!r}, which is no model")
        # A line end, as of a file, would begin another header.
        if not _HEADER_TEXT.fullmatch(key):
            raise ConfigError(
                f"{place}: the key for {name!r} has characters that no header takes, or none"
            )


def nearest(name: str) -> str:
    """Returns a question after the setting with the most similar name; empty if there is none."""
    found = difflib.get_close_matches(name, FIELDS, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _shown(value: object, name: str) -> str:
    if "key" in name.lower():
        return "(not shown)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
