"""What flags and documents are made from: each setting as it is declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from afterword.config.settings import Settings

TABLES = ("models", "aliases", "upstream_keys")
"""Settings that are tables."""
FIELDS = {field.name: field.type for field in msgspec.structs.fields(Settings)}
"""The type of each setting."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One declared setting. Flags and documents are made from it.

    ``type`` is the type of its values. ``value`` is what its flag takes, None without a flag.
    ``default`` is in words.
    """

    name: str
    type: Any
    panel: str
    help: str
    value: str | None
    default: str

    @property
    def is_switch(self) -> bool:
        """Whether it is a boolean."""
        return self.type is bool

    @property
    def is_table(self) -> bool:
        """Whether it is a table. Each of its flags adds one entry."""
        return self.name in TABLES

    @property
    def flag(self) -> str:
        """The flag that sets it. A table's flag takes one entry and is singular."""
        singular = {"models": "model", "aliases": "alias"}.get(self.name, self.name)
        return "--" + singular.replace("_", "-")

    @property
    def opposite(self) -> str:
        """The flag that turns a switch off."""
        name = self.flag.removeprefix("--")
        return f"--{name.removeprefix('no-')}" if name.startswith("no-") else f"--no-{name}"


def _declared() -> Iterator[Setting]:
    for field in msgspec.structs.fields(Settings):
        kind, *_, meta = get_args(field.type)
        words = meta.extra["default"]
        if words is None:
            value = field.default
            words = str(value).lower() if isinstance(value, bool) else str(value)
        yield Setting(
            name=field.name,
            type=kind,
            panel=meta.extra["panel"],
            help=meta.description,
            value=meta.extra["value"],
            default=words,
        )


SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _declared()}
