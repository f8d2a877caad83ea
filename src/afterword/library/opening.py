"""From a model's name, as ``--model`` takes it, to settings and to what opens them."""

from __future__ import annotations

import os
from typing import Any

from afterword.compose.naming import named_model
from afterword.compose.progress import Quiet
from afterword.config import SETTINGS, Settings, nearest, resolve
from afterword.core.errors import ConfigError
from afterword.library.backend import Opener
from afterword.library.local import loading

_PANELS = frozenset({"Models", "Engine", "Other servers", "Limits of a request"})
"""Of the settings that a model has without a server around it."""


def settings_for(model: str | os.PathLike[str], given: dict[str, Any]) -> Settings:
    """Returns the settings of one model. The environment counts as it does for the server.

    Raises ``ConfigError`` for a source that is malformed, for a setting that there is not, and for
    one that has no effect without a server.
    """
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(model, str):
        raise ConfigError(f"a model is a name, a path or an address, not {type(model).__name__}")
    for setting in given:
        _refuse(setting)
    name, source = named_model(model)
    flags = {"models": {name: source}, "aliases": {}, "require_model": False, **given}
    return resolve(flags, os.environ).settings


def _refuse(name: str) -> None:
    """Raises ``ConfigError`` for what is no setting of one model in a program."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise ConfigError(f"{name!r} is not a setting{nearest(name)}")
    if name == "models":
        raise ConfigError(
            "'models' is not for one model, which is the first argument: "
            "LLM.of(Settings(models={…})) takes several"
        )
    # Bodies come over HTTP.
    if setting.panel not in _PANELS or name == "max_body_bytes":
        raise ConfigError(f"{name!r} has no effect here: it is a setting of the server")


def opener_for(settings: Settings) -> Opener:
    """Returns what loads the models of settings, without a word on the terminal."""
    return loading(settings, Quiet())
