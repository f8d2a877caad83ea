"""What the hub's client raises is one line, and nothing of it is a traceback."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from json import JSONDecodeError
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import pytest
from httpx2 import ConnectTimeout, ReadError, RemoteProtocolError, Request, Response
from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from afterword.core.errors import ConfigError
from afterword.models import hub
from afterword.models.source import HubChoice, HubSource, parse_source
from standins.hub import Hub, running

AFTERWORD = Path(sys.executable).parent / "afterword"
FILE = HubSource("org/repo", "m.gguf", None)
CHOICE = HubChoice("org/repo", None, None)


def answered(status: int) -> HfHubHTTPError:
    """What the client raises if the hub answers with a status."""
    return HfHubHTTPError("no", response=Response(status, request=Request("GET", "http://hub/x")))


def not_in_cache(cause: Exception | None) -> LocalEntryNotFoundError:
    """What the client raises if it overlooks an error and the cache does not have the file."""
    error = LocalEntryNotFoundError("please check your connection")
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (answered(401), "the hub answered 401"),
        (not_in_cache(answered(403)), "the hub answered 403"),
        (not_in_cache(answered(404)), "the hub answered 404"),
        (not_in_cache(answered(503)), "the hub answered 503"),
        (not_in_cache(ConnectTimeout("x")), "the hub cannot be reached"),
        (not_in_cache(OfflineModeIsEnabled("x")), "the hub cannot be reached"),
        (not_in_cache(None), "the hub cannot be reached"),
        (ReadError("x"), "the hub cannot be reached"),
        (
            not_in_cache(FileMetadataError("x")),
            "what answers is not a hub (HF_ENDPOINT, a proxy)",
        ),
        (
            JSONDecodeError("Expecting value", "<html>", 0),
            "what answers is not a hub (HF_ENDPOINT, a proxy)",
        ),
        (RemoteProtocolError("10 of 20 bytes"), "the hub's answer broke off"),
        (
            OSError("Consistency check failed: 10 and 20 bytes.\nDo this."),
            "cannot be fetched: Consistency check failed: 10 and 20 bytes.",
        ),
        (RuntimeError("Xet gives up"), "cannot be fetched: Xet gives up"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "cannot be stored (HF_HOME): No space left on device",
        ),
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES), "/there"),
            "cannot be stored (HF_HOME): /there: Permission denied",
        ),
    ],
    ids=str,
)
def test_why_a_file_cannot_be_fetched(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConfigError) as refused:
        hub.fetch_model(FILE)
    assert str(refused.value) == f"hf:org/repo/m.gguf: {said}"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_cannot_answer_now_is_as_if_it_were_not_there(
    cache: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """The files in the cache are all that there is."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise answered(status)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    with pytest.raises(ConfigError, match=f"^hf:org/repo: the hub answered {status}$"):
        hub.choose_file(CHOICE)
    repository = cache / "models--org--repo"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("a" * 40) / "odd.gguf").write_bytes(b"")
    assert hub.choose_file(CHOICE) == HubSource("org/repo", "odd.gguf", None)


@pytest.mark.parametrize(
    "source", ["hf:-org/repo/m.gguf", "hf:org/re..po/m.gguf", "hf:o/r//m.gguf"]
)
def test_names_that_the_client_refuses(source: str) -> None:
    parsed = parse_source(source)
    assert isinstance(parsed, HubSource)
    with pytest.raises(ConfigError, match=r"^hf:.*: cannot be fetched: "):
        hub.find_in_cache(parsed)


@pytest.mark.parametrize("source", ["hf:-org/repo", "hf:org/re--po:Q8_0"])
def test_repositories_that_the_client_refuses(source: str) -> None:
    parsed = parse_source(source)
    assert isinstance(parsed, HubChoice)
    with pytest.raises(ConfigError, match=r"^hf:.*: cannot be fetched: "):
        hub.chosen_in_cache(parsed)


@pytest.mark.e2e
def test_the_token_is_for_the_hub_alone(tmp_path: Path) -> None:
    """Bodies are on other hosts, whose addresses are signed."""
    with running(Hub({"m.gguf": b"body"})) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        with running(Hub({"m.gguf": b"body"}, elsewhere=there)) as asked:
            done = pull(asked, tmp_path, HF_TOKEN="mine")  # noqa: S106 - no secret
    assert "is no GGUF file" in done.stderr
    assert set(asked.tokens) == {"Bearer mine"}
    assert other.tokens == [None]


@pytest.mark.e2e
def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A limit of the size of files stands for a full disk."""
    with running(Hub({"m.gguf": bytes(2**20)})) as asked:
        done = pull(asked, tmp_path, "ulimit -f 64; exec")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "afterword: hf:org/repo/m.gguf: cannot be stored (HF_HOME): File too large"
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


def pull(
    asked: Hub, home: Path, before: str = "exec", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run ``afterword models pull`` in a shell that runs ``before`` it."""
    command = ["sh", "-c", f'{before} "$@"', "sh", str(AFTERWORD), "models", "pull"]
    return subprocess.run(
        [*command, "hf:org/repo/m.gguf"], check=False, capture_output=True, text=True,
        env={**os.environ, "HF_ENDPOINT": asked.url, "HF_HOME": str(home), **more,
             "AFTERWORD_MODELS_DIR": str(home / "store")},
    )  # fmt: skip


def test_the_client_leaves_its_warnings_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    client = logging.getLogger("huggingface_hub")
    client.addHandler(logging.StreamHandler())
    assert hub.find_in_cache(HubSource("nobody/nothing", "m.gguf", None)) is None
    assert client.handlers == []
    client.warning("Retrying in 1s")
    assert "Retrying in 1s" in caplog.text
