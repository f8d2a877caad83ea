"""Who gets in without a key, and what the operator is told of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afterword.cli.serving import check_entrance
from afterword.cli.terminal import Terminal
from afterword.config import Settings
from afterword.core.account import KeyTerms
from afterword.core.errors import ConfigError
from afterword.ledger.database import Database, connect, parse_url, prepare
from afterword.ledger.keys import KeyStore


class Said(Terminal):
    """A terminal that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(params=["127.0.0.1", ""], ids=["here", "everywhere"])
def bound(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.create_server((request.param, 0)) as made:
        yield made


@pytest.fixture(params=["no ledger", "no key", "a key"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database | None]:
    if request.param == "no ledger":
        yield None
        return
    engine = connect(parse_url(f"sqlite:///{tmp_path}/ledger.db"))
    prepare(engine)
    if request.param == "a key":
        KeyStore(engine, clock=time.time, entropy=os.urandom).create(KeyTerms(name="a"))
    yield engine
    engine.dispose()


@pytest.mark.parametrize("no_auth", [False, True])
@pytest.mark.parametrize("origins", [None, "https://app.example", "*", "https://a.example, null"])
def test_who_gets_in_and_what_is_said(
    request: pytest.FixtureRequest, bound: socket.socket, ledger: Database | None,
    no_auth: bool, origins: str | None,
) -> None:  # fmt: skip
    here = bound.getsockname()[0] == "127.0.0.1"
    has_key = request.node.callspec.params["ledger"] == "a key"
    terminal = Said()
    settings: dict[str, Any] = {"no_auth": no_auth, "cors_origins": origins}
    check = partial(check_entrance, Settings(**settings), bound, ledger, terminal)
    if not (no_auth or here or has_key):
        with pytest.raises(ConfigError, match="there is no key yet"):
            check()
    else:
        assert check() == ("open" if no_auth else "keys_if_any" if here else "keys")
    wide = {"*": "*", "https://a.example, null": "null"}.get(origins or "")
    warned = [line for line in terminal.lines if "cors-origins" in line]
    if wide and (no_auth or not has_key):
        (line,) = warned
        assert line.startswith(f"WARNING: cors-origins {wide} without a key: every page")
    else:
        assert warned == []
    assert any("everybody" in line for line in terminal.lines) == (no_auth and not here)
