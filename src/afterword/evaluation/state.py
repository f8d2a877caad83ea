"""The state of an evaluation: a file that grows by a line for each item.

It knows items by their digests, so it goes on when a task gets other items, or in another order.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.evaluation.outcomes import Outcome

_encode = msgspec.json.Encoder().encode


class RunHeader(msgspec.Struct, frozen=True, tag="evaluation"):
    """What an evaluation is of. ``task`` is the name of the task's file."""

    task: str
    model: str
    fingerprint: str


class StateFile:
    """The outcomes so far, by the digests of their items, in a file.

    A run that breaks off loses the items under way. A last line that was half written is dropped.
    Raises ``ConfigError`` if the file belongs to another task or model, or cannot be used.
    """

    def __init__(self, path: Path, header: RunHeader) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        try:
            raw = path.read_bytes() if path.exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            self._read(whole.splitlines(), header)
            # What is there stays there: a full disk would take no second copy.
            with path.open("ab") as file:
                file.truncate(len(whole))
                file.write(b"" if whole else _encode(header) + b"\n")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be used: {error.strerror}") from error

    def _read(self, lines: list[bytes], header: RunHeader) -> None:
        try:
            found = msgspec.json.decode(lines[0], type=RunHeader) if lines else header
            for line in lines[1:]:
                outcome: Outcome = msgspec.json.decode(line, type=Outcome)
                self.outcomes[outcome.item] = outcome
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{self.path}: is no state of an evaluation: {error}") from error
        for field in header.__struct_fields__:
            there, here = getattr(found, field), getattr(header, field)
            if there != here:
                raise ConfigError(
                    f"{self.path}: belongs to another evaluation: its {field} is {there!r}, not "
                    f"{here!r}. Remove it, or name another folder with --state"
                )

    def add(self, outcome: Outcome) -> None:
        """Write down an outcome. Raises ``ConfigError`` if it cannot be."""
        self.outcomes[outcome.item] = outcome
        try:
            with self.path.open("ab") as file:
                file.write(_encode(outcome) + b"\n")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from error
