"""Starts the servers to compare, this one and its peers, on one file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import peers
import tests_path  # noqa: F401 - where support is
from run import serve_command
from support.embedded import embedded_file
from support.processes import free_port, running


class Servers:
    """Starts servers on free ports, with the arguments of the benchmark."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model: Path = args.model or embedded_file()

    def our_command(self, port: int, *, slots: int, ctx: int, kv: str | None = None) -> list[str]:
        """Returns the command of Afterword on this port."""
        given = argparse.Namespace(**{**vars(self.args), "ctx": ctx, "kv": kv or self.args.kv})
        return serve_command(self.model, port, given, slots)

    def llama_command(
        self, port: int, *, slots: int, ctx: int, flags: Sequence[str] = ()
    ) -> list[str]:
        """Returns the command of llama-server on this port."""
        command = peers.llama_server(
            self.args.peers, self.model, port, threads=self.args.threads, slots=slots, ctx=ctx
        )
        return [*command, *flags]

    @contextmanager
    def ours(
        self,
        *flags: str,
        slots: int,
        ctx: int,
        kv: str | None = None,
    ) -> Iterator[int]:
        """Run Afterword; yields its port."""
        port = free_port()
        command = self.our_command(port, slots=slots, ctx=ctx, kv=kv)
        with running([*command, *flags], port):
            yield port

    @contextmanager
    def plain(self, *, slots: int, ctx: int) -> Iterator[int]:
        """Run Afterword on an unchanged llama.cpp; yields its port."""
        port = free_port()
        command = self.our_command(port, slots=slots, ctx=ctx)
        (library,) = (self.args.peers / "plain").glob("lib/python3*/site-packages/llama_cpp/lib")
        with running(["env", f"AFTERWORD_NATIVE_PATH={library}", *command], port):
            yield port

    @contextmanager
    def llama_server(self, *flags: str, slots: int, ctx: int) -> Iterator[int]:
        """Run llama-server; yields its port."""
        port = free_port()
        with running(self.llama_command(port, slots=slots, ctx=ctx, flags=flags), port):
            yield port

    @contextmanager
    def python_server(self, *, ctx: int) -> Iterator[int]:
        """Run llama-cpp-python's own server, with all logits for scoring; yields its port."""
        port = free_port()
        command = [
            str(self.args.peers / "pyserver" / "bin" / "python"), "-m", "llama_cpp.server",
            "--model", str(self.model), "--n_ctx", str(ctx), "--logits_all", "true",
            "--n_threads", str(self.args.threads), "--port", str(port),
        ]  # fmt: skip
        with running(command, port, ready="/v1/models"):
            yield port
