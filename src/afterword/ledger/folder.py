"""The data folder: where the database file and the journals are, closed to other users."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from afterword.core.errors import ConfigError

_log = logging.getLogger(__name__)

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_OTHERS = 0o077
_JOURNAL = "journal"
_DATABASE = "ledger.db"
_COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite keeps next to a file, with the file's mode."""


def database_file(folder: Path) -> Path:
    """Returns the file of a ledger whose database is not given."""
    return folder / _DATABASE


def has_database(folder: Path) -> bool:
    """Whether that file is there and this process may see it."""
    return os.path.exists(database_file(folder))  # noqa: PTH110 - Path.exists raises for a closed folder


def companions(file: Path) -> list[Path]:
    """Returns the files that SQLite keeps next to one."""
    return [file.with_name(file.name + end) for end in _COMPANIONS]


def journals_in(folder: Path) -> Path:
    """Returns the folder of the journals of all processes on a data folder."""
    return folder / _JOURNAL


def make_folder(folder: Path) -> None:
    """Make the data folder, or close it and its files to others. Raises ``ConfigError``."""
    try:
        make_private(folder)
        close_files(folder.glob(f"{_DATABASE}*"))
        if journals_in(folder).is_dir():
            make_private(journals_in(folder))
    except OSError as error:
        raise ConfigError(
            f"{folder}: the ledger cannot be kept here (--data-dir): {error.strerror}"
        ) from error


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may open, or close it and its files to others.

    The log says what is changed and what cannot be. A folder that others need stays as it is.
    Raises ``OSError`` if it is not there and cannot be made.
    """
    if not folder.is_dir():
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        # The mode above goes through the umask.
        folder.chmod(_FOLDER_MODE)
        _give_to_owner(folder)
        return
    found = folder.stat()
    if found.st_uid != os.geteuid():
        _say(f"{folder} belongs to user {found.st_uid}, not to this one ({os.geteuid()})")
    if found.st_mode & _OTHERS:
        shared = _why_shared(folder, found)
        if shared is None:
            _close(folder, found, _FOLDER_MODE)
        else:
            mode = f"{stat.S_IMODE(found.st_mode):o}"
            _say(
                f"{folder} is open to others (mode {mode}) and stays so, because {shared}: name "
                "another --data-dir"
            )
    if folder.name == _JOURNAL:
        close_files(folder.iterdir())


def make_private_file(file: Path) -> None:
    """Make an empty file that only its owner may read, or close one to others.

    The target of a link is made, too. One that is there stays as it is, because a link may lead to
    what is not the ledger's; the log says if it is open. Raises ``OSError`` if it cannot be made.
    """
    if file.is_symlink():
        link, file = file, file.resolve()
        if file.exists():
            _say_if_open(link, file)
            return
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE)
    except FileExistsError:
        close_files([file, *companions(file)])
        return
    try:
        os.fchmod(descriptor, _FILE_MODE)
    finally:
        os.close(descriptor)
    _give_to_owner(file)


def close_files(files: Iterable[Path]) -> None:
    """Close files to others. The log says which."""
    for file in files:
        try:
            found = file.lstat()
        except OSError:
            # Another process has removed it.
            continue
        if stat.S_ISREG(found.st_mode) and found.st_mode & _OTHERS:
            _close(file, found, _FILE_MODE)


def _say_if_open(link: Path, target: Path) -> None:
    mode = stat.S_IMODE(target.stat().st_mode)
    if mode & _OTHERS:
        _say(f"{link} is a link to {target}, which is open to others (mode {mode:o}): close it")


def _close(path: Path, found: os.stat_result, mode: int) -> None:
    was = f"{stat.S_IMODE(found.st_mode):o}"
    try:
        path.chmod(mode)
    except OSError as error:
        _say(f"{path} is open to others (mode {was}), and that cannot be changed: {error.strerror}")
        return
    _log.warning("%s was open to others (mode %s) and is closed now (%o)", path, was, mode)


@cache
def _say(text: str) -> None:
    """Log a warning once: a start looks at a folder several times."""
    _log.warning("%s", text)


def _why_shared(folder: Path, found: os.stat_result) -> str | None:
    """Returns why others may need a folder, or None."""
    real = folder.resolve()
    if found.st_mode & stat.S_ISVTX:
        return "everybody may write into it"
    if real.parent in {real, Path("/")}:
        return "it is a folder of the system"
    if real == Path.home():
        return "it is a home"
    try:
        others = [one.name for one in folder.iterdir() if one.is_dir() and one.name != _JOURNAL]
    except OSError:
        return None
    return f"it has other folders, as {others[0]!r}" if others else None


def _give_to_owner(path: Path) -> None:
    """Give what root makes in a user's folder to that user: a service has to open it later."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        if owner.st_uid != 0:
            os.chown(path, owner.st_uid, owner.st_gid)
