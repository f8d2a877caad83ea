"""The command line and the composition root: the only package that imports every other one."""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

import rich_click as click

from afterword import __version__
from afterword.core.errors import ApiError, ConfigError, InvalidRequest

_COMMANDS = (
    "serve", "complete", "score", "eval", "replay", "models", "keys", "usage", "db", "doctor",
)  # fmt: skip

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What writing to a full disk gives."""
_INTERRUPTED = 128 + signal.SIGINT


@contextmanager
def importing() -> Iterator[None]:
    """Pause the garbage collector during imports: it takes a tenth of their time.

    Imported objects stay for ever, so later collections leave them out.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _Lazy(click.RichGroup):
    """Imports a command when it is used, so that ``--version`` does not load a server."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        with importing():
            module = importlib.import_module(f"afterword.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. After Ctrl-C the exit status is that of shells, where click's is 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # One more ends the process at once, also while threads end.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            click.echo("afterword: interrupted", err=True)
            ctx.exit(_INTERRUPTED)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="afterword")
def cli() -> None:
    """Afterword: the completions server. All of POST /v1/completions, on real models."""


def _take_the_place_of_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the next file that is opened, such as a database, would get its number. Standard input
    stays None in Python, so that a command can say that it is closed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        if name != "stdin":
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def main() -> None:
    """Run the command line; a mistake of the operator is one line and exit status 2."""
    # Threads of numpy would compete with the engine's. Nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _take_the_place_of_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # Characters that a terminal's encoding does not have are escaped. In the locale C, Python
        # sets "surrogateescape", which fails for all but the bytes of arguments.
        if isinstance(stream, TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
            stream.reconfigure(errors="backslashreplace")
    try:
        cli()
    except ConfigError as error:
        _fail(str(error), 2)
    except ApiError as error:
        _fail(error.message, 2 if isinstance(error, InvalidRequest) else 1)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _fail(f"the output cannot be written: {error.strerror}", 1)


def _fail(message: str, status: int) -> None:
    line = " ".join(message.split())
    from afterword.cli.logs import is_json  # noqa: PLC0415 - only for failures

    if is_json():
        logging.getLogger("afterword.start").critical("%s", line)
    else:
        from afterword.cli.terminal import printable  # noqa: PLC0415

        # It may quote a file or a server.
        print(f"afterword: {printable(line)}", file=sys.stderr)  # noqa: T201 - the one line
    sys.exit(status)
