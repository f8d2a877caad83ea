"""The log on standard error: lines for a terminal, or JSON objects for programs.

A record of a library never shows the text of an exception, which may quote a request.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from afterword.cli.terminal import Terminal
from afterword.core.faults import faults_of, without_keys

LogFormat = Literal["text", "json"]
_start = logging.getLogger("afterword.start")


class JsonLines(logging.Formatter):
    """One object a record: time, level, logger, message, and the fields of a request's line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        fields = getattr(record, "fields", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "request" if fields is not None else _message(record),
        }
        if fields is not None:
            line |= msgspec.to_builtins(fields)
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["faults"] = msgspec.to_builtins(faults_of(record.exc_info[1]))
        # The standard library escapes what is no UTF-8, and ends of lines of all kinds.
        return json.dumps(line)


class TextLines(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's lines, without keys and without what a terminal would obey."""
        text = without_keys(super().format(record))
        # Requests name paths and models, and JSON does not escape all controls and ends of lines.
        return text if text.isascii() else "".join(map(_shown, text))

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - logging's
        """Returns types and places, without the exception's text."""
        return msgspec.json.encode(faults_of(ei[1])).decode()


class LogTerminal(Terminal):
    """What a start says, as records of the log."""

    def say(self, text: str) -> None:
        """Log one line. What begins with WARNING is one."""
        warning = text.startswith("WARNING: ")
        level = logging.WARNING if warning else logging.INFO
        _start.log(level, "%s", text.removeprefix("WARNING: "))

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """Log each quarter, also where standard error is a terminal."""
        yield self.quarters(label, total_bytes)


def open_log(level: str, log_format: LogFormat) -> Terminal:
    """Send the log, also libraries' and Python's warnings, to standard error.

    Returns what a start writes to.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.addHandler(lines)
    logging.getLogger("afterword").setLevel(level.upper())
    logging.captureWarnings(capture=True)
    return LogTerminal() if log_format == "json" else Terminal()


def is_json() -> bool:
    """Whether the log is open and made of JSON."""
    return any(isinstance(one.formatter, JsonLines) for one in logging.getLogger().handlers)


def ready_line(facts: Mapping[str, object]) -> str:
    """Returns what a server prints when it is ready, as JSON."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    head = {"time": now, "level": "info", "logger": _start.name, "message": "Afterword is ready"}
    return json.dumps({**head, **facts})


def _shown(character: str) -> str:
    return character if character.isprintable() or character == "\n" else ascii(character)[1:-1]


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - a library's mistake in a format
        text = str(record.msg)
    return without_keys(text)
