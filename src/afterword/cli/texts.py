"""Texts of files and of standard input, to the byte: ends of lines stay what they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from afterword.core.errors import ConfigError


def file_text(file: str) -> str:
    """Returns the text of a file. Raises ``ConfigError`` if it cannot be read."""
    try:
        raw = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    return _decoded(raw, file)


def standard_input() -> str:
    """Returns all of standard input. Raises ``ConfigError`` if it is closed or no text."""
    if sys.stdin is None:
        raise ConfigError("standard input: is closed")
    return _decoded(sys.stdin.buffer.read(), "standard input")


def argument_text(argument: str, name: str) -> str:
    """Returns the text of an argument. Raises ``ConfigError`` if it is none."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        # Bytes that the locale's encoding does not have. In the locale C these are all but ASCII.
        return _decoded(os.fsencode(argument), name)
    return argument


def _decoded(raw: bytes, name: str) -> str:
    """Returns a text without its byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not text in UTF-8") from error
