"""Reads OpenAI's vocabularies from the files that tiktoken keeps: base64 and rank on each line."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

from afterword.core.errors import ConfigError

_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
"""tiktoken names a kept file by the SHA-1 of its address."""


def read_tiktoken(name: str, folder: Path) -> Mapping[int, bytes]:
    """Returns the bytes of each token of a vocabulary. Nothing is fetched.

    ``folder`` has NAME.tiktoken, or the file as tiktoken keeps it (TIKTOKEN_CACHE_DIR). Raises
    ``ConfigError``.
    """
    kept = hashlib.sha1(_ADDRESS.format(name=name).encode(), usedforsecurity=False).hexdigest()
    for file in (folder / f"{name}.tiktoken", folder / kept):
        if file.is_file():
            return _read(file)
    raise ConfigError(f"tokens={name}: {folder} has neither {name}.tiktoken nor {kept}")


def _read(file: Path) -> Mapping[int, bytes]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    pieces: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token, piece = int(rank), base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ConfigError(f"{file}, line {number}: is not a token and its rank") from error
        if token in pieces or not piece:
            raise ConfigError(f"{file}, line {number}: rank {token} is there twice, or is empty")
        pieces[token] = piece
    return pieces
