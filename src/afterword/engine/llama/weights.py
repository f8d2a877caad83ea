"""Weights in other forms than the file's: which there are, and where converted files are kept.

A converted file is named by all that it was made from (the SHA-256 of the source, form, version of
the library) and by its size. It is written beside its place and renamed, under the folder's
lock; what lies there unfinished while nobody holds the lock was left by a process that died.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.gguf import Header
from afterword.engine.llama.notes import Notes
from afterword.engine.llama.parts import read_header

AS_IS = "as-is"
FORMS: Sequence[str] = ("q8_0", "bf16", "f16", "q4_0")
EXACT_FORM = "f32"
"""What fidelity is measured against; kept by nobody."""
LIBRARY_VERSION = importlib.metadata.version("llama-cpp-python")

_MOST_VALUE_BYTES = {"q8_0": 34 / 32, "bf16": 2.0, "f16": 2.0, "q4_0": 34 / 32, "f32": 4.0}
"""Of a weight, at most: llama.cpp gives the output and odd shapes a larger format."""
_METADATA_BYTES = 64 * 2**20
_NAME = re.compile(r"([0-9a-f]{64})-([a-z0-9_]+)-([A-Za-z0-9.+]+)-([0-9]+)\.gguf")
_LOCK = "lock"
_UNFINISHED = ".part"

Convert: TypeAlias = Callable[[Path, Path, str, int], None]
"""Source, destination, form, and a descriptor that a child should hold: it has the lock."""


class Weights(msgspec.Struct, frozen=True):
    """What an engine runs: ``as-is``, or a form and the format that most of the file had."""

    form: str = AS_IS
    converted_from: str | None = None

    def origin(self, digest: str) -> str:
        """What weights these are: of the file with this SHA-256, in this form."""
        return f"{digest} {self.form}"

    def facts(self) -> Mapping[str, str]:
        """For people and clients."""
        facts = {"weights": self.form}
        if self.converted_from is not None:
            facts["converted_from"] = self.converted_from
        return facts


UNCHANGED = Weights()


class Converted(msgspec.Struct, frozen=True):
    """A converted file that is kept."""

    path: Path
    digest: str
    form: str
    library: str
    size_bytes: int


def most_bytes(header: Header, form: str) -> int:
    """No converted file is larger than this."""
    metadata = min(header.file_bytes, _METADATA_BYTES)
    return int(header.parameters * _MOST_VALUE_BYTES[form]) + metadata


class WeightsFolder:
    """Converted files, and what was found out about forms. Nothing is made before it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = Notes(folder)

    def find(self, digest: str, form: str) -> Path | None:
        """The file of a form, whole, made by this library."""
        for kept in self.kept():
            if (kept.digest, kept.form, kept.library) == (digest, form, LIBRARY_VERSION):
                return kept.path
        return None

    def kept(self) -> Iterator[Converted]:
        """Every converted file that has the size it had when it was made, by name."""
        for path in sorted(self.folder.glob("*.gguf")):
            found = _NAME.fullmatch(path.name)
            if found is not None and path.stat().st_size == int(found[4]):
                yield Converted(path, found[1], found[2], found[3], int(found[4]))

    def sweep(self) -> None:
        """Remove what dead processes left unfinished, unless a living one is at work."""
        if self.folder.is_dir():
            with suppress(BlockingIOError, PermissionError), self._lock(fcntl.LOCK_NB):
                pass

    def prune(self) -> int:
        """Remove everything; the bytes freed. Raises ``ConfigError`` while a process is at work.

        A server that runs on a converted file keeps what it has mapped.
        """
        freed = 0
        if not self.folder.is_dir():
            return freed
        try:
            with self._lock(fcntl.LOCK_NB):
                for path in sorted(self.folder.iterdir()):
                    if path.name != _LOCK:
                        freed += path.stat().st_size
                        path.unlink()
        except BlockingIOError as error:
            raise ConfigError(f"{self.folder}: a process prepares weights there now") from error
        return freed

    @contextmanager
    def work(self) -> Iterator[Workshop]:
        """Wait until no other process is at work here, then keep others out.

        Raises ``ConfigError`` where nothing can be stored.
        """
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                descriptor = held.enter_context(self._lock())
            except OSError as error:
                raise ConfigError(f"{self.folder}: cannot be written: {error.strerror}") from error
            yield Workshop(self, descriptor)

    @contextmanager
    def _lock(self, how: int = 0) -> Iterator[int]:
        with (self.folder / _LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | how)
            self._remove_unfinished()
            yield file.fileno()

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            path.unlink()


class Workshop:
    """The folder while its lock is held; ``descriptor`` holds it too, for children to inherit."""

    def __init__(self, folder: WeightsFolder, descriptor: int) -> None:
        self._folder = folder
        self.descriptor = descriptor

    def convert(self, source: Path, digest: str, form: str, run: Convert) -> Path:
        """The file of a form, made now unless it is kept.

        Raises ``ConfigError`` where the disk is too full or the library cannot.
        """
        found = self._folder.find(digest, form)
        if found is not None:
            return found
        with self.converted(source, digest, form, run) as part:
            return self.keep(part, digest, form)

    @contextmanager
    def converted(self, source: Path, digest: str, form: str, run: Convert) -> Iterator[Path]:
        """A file of a form, made now, which is gone after the block unless it was kept.

        Raises ``ConfigError`` where the disk is too full or the library cannot.
        """
        size_bytes = most_bytes(read_header(source), form)
        with self.scratch(f"{digest}-{form}", size_bytes) as part:
            run(source, part, form, self.descriptor)
            yield part

    def keep(self, part: Path, digest: str, form: str) -> Path:
        """Have what was converted found from now on."""
        with part.open("rb") as written:
            os.fsync(written.fileno())
        name = f"{digest}-{form}-{LIBRARY_VERSION}-{part.stat().st_size}.gguf"
        return part.rename(self._folder.folder / name)

    @contextmanager
    def scratch(self, name: str, size_bytes: int) -> Iterator[Path]:
        """A place for a file of at most this size, which is gone after the block.

        Raises ``ConfigError`` where the disk has no room for it.
        """
        free = shutil.disk_usage(self._folder.folder).free
        if free < size_bytes:
            raise ConfigError(
                f"{self._folder.folder}: {size_bytes / 1e6:,.0f} MB may be needed, "
                f"and {free / 1e6:,.0f} MB are free"
            )
        part = self._folder.folder / f"{name}{_UNFINISHED}"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
