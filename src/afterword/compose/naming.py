"""Names of models that a source does not name."""

from __future__ import annotations

from afterword.config import is_model_name
from afterword.core.errors import ConfigError
from afterword.gateway.address import is_remote
from afterword.models.source import has_own_name, source_label, with_home


def named_model(value: str) -> tuple[str, str]:
    """Returns name and source of ``[NAME=]SOURCE``. A source without a name gets its label.

    Raises ``ConfigError`` if it is malformed.
    """
    if is_remote(value):
        raise ConfigError(f"--model {value!r}: a model behind other servers needs a NAME=")
    if is_source(value):
        return source_label(value), value
    name, _, source = value.partition("=")
    if not name or not source:
        raise ConfigError(f"--model {value!r} is not [NAME=]SOURCE")
    return name, source


def is_source(value: str) -> bool:
    """Whether the text is a source without a name. Paths may have equal signs."""
    left, equals, _ = value.partition("=")
    if not value or not equals or has_own_name(value):
        return bool(value)
    return with_home(value).is_file() or (not is_model_name(left) and "/" in left)
