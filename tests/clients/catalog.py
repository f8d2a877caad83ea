"""The clients that are run for real, and their table in docs/clients.md."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "catalog.toml"


class TriedClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"set_": "set"}):
    """A client: what is installed of it, what its user sets, and the test that runs it.

    ``package`` is a name on PyPI, or with ``(npm)`` behind it on npm, unless it is
    ``in_no_registry``. Its version stands here, or in the file ``pinned_by``. With
    ``omits_optional`` npm leaves out what packages name as optional.
    """

    name: str
    package: str
    set_: str
    notes: str
    test: str
    version: str = ""
    pinned_by: str = ""
    in_no_registry: bool = False
    extras: str = ""
    omits_optional: bool = False
    with_: Sequence[str] = msgspec.field(default=(), name="with")

    @property
    def short_name(self) -> str:
        """The package's name without its registry."""
        return self.package.removesuffix(" (npm)")

    @property
    def is_for_node(self) -> bool:
        """Whether npm installs it."""
        return self.package.endswith(" (npm)")

    @property
    def is_own(self) -> bool:
        """Whether it is installed into an environment of its own."""
        return not self.pinned_by and not self.in_no_registry

    @property
    def tried(self) -> str:
        """The version that the tests run."""
        if not self.pinned_by:
            return self.version
        text = (ROOT / self.pinned_by).read_text()
        if self.pinned_by.endswith(".json"):
            return str(json.loads(text)["dependencies"][self.short_name])
        pinned = re.search(rf"^{re.escape(self.short_name)}==(\S+)", text, re.MULTILINE)
        assert pinned is not None, (self.name, self.pinned_by)
        return pinned[1]

    @property
    def requirements(self) -> Sequence[str]:
        """What an environment of its own installs, as its registry's program writes it."""
        if self.is_for_node:
            return [f"{self.short_name}@{self.tried}", *self.with_]
        extras = f"[{self.extras}]" if self.extras else ""
        return [f"{self.short_name}{extras}=={self.tried}", *self.with_]


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All clients; nothing newer than the day ``as_of`` is installed."""

    as_of: str
    client: Sequence[TriedClient]

    def named(self, package: str) -> TriedClient:
        """The first client of a package, as ``TriedClient.package`` writes it."""
        return next(client for client in self.client if client.package == package)


@cache
def catalog() -> Catalog:
    """Read the catalog."""
    return msgspec.convert(tomllib.loads(FILE.read_text()), Catalog)


def clients_table() -> str:
    """The table of docs/clients.md."""
    rows = ["| client | tried | set | notes |", "|---|---|---|---|"]
    rows += [
        f"| {client.name} | {client.package} {client.tried} | {client.set_} | {client.notes} |"
        for client in catalog().client
    ]
    return "\n".join(rows)
