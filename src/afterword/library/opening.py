"""From a model's name, as ``--model`` takes it, to settings and to what opens them."""

from __future__ import annotations

import os
from typing import Any

from afterword.compose.naming import named_model
from afterword.compose.progress import Quiet
from afterword.config import SETTINGS, Settings, resolve
from afterword.core.errors import ConfigError
from afterword.library.backend import Opener
from afterword.library.local import loading


def settings_for(model: str | os.PathLike[str], given: dict[str, Any]) -> Settings:
    """Returns the settings of one model. The environment counts as it does for the server.

    Raises ``ConfigError`` for a source that is malformed, and for a setting that there is not.
    """
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(model, str):
        raise ConfigError(f"a model is a name, a path or an address, not {type(model).__name__}")
    for setting in given:
        if setting not in SETTINGS:
            raise ConfigError(f"{setting!r} is not a setting")
    name, source = named_model(model)
    flags = {"models": {name: source}, "aliases": {}, "require_model": False, **given}
    return resolve(flags, os.environ).settings


def opener_for(settings: Settings) -> Opener:
    """Returns what loads the models of settings, without a word on the terminal."""
    return loading(settings, Quiet())
