"""Work that could end the process, in a process of its own: ``ask`` here, ``main`` there.

The library ends the process where it gives up, and native code may crash on a file; the server
then goes on, with one line of error. A child dies with whoever asked, and has inherited its lock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias, TypeVar, assert_never

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.verdict import Fidelity, Figures, Speeds

_PARENT_DEATH_SIGNAL = 1
"""``prctl``'s PR_SET_PDEATHSIG."""


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How much is computed at once: tokens of a prompt, steps of streams.

    ``full`` asks for the figures that no choice needs too.
    """

    prompt_tokens: int
    steps: int
    full: bool


QUICK = Effort(prompt_tokens=128, steps=5, full=False)
THOROUGH = Effort(prompt_tokens=512, steps=8, full=True)


class Convert(msgspec.Struct, frozen=True, tag=True):
    """Write ``source`` in another form to ``destination``."""

    source: str
    destination: str
    form: str
    threads: int


class Beside(msgspec.Struct, frozen=True):
    """A file whose speeds are known."""

    path: str
    speeds: Speeds


class Survey(msgspec.Struct, frozen=True, tag=True):
    """Measure a file; where ``promised``, only if its rows do not depend on their batch.

    With ``beside`` both files are measured in turn, and the speeds are what is known of the other
    times the ratio of the two: a machine may change its own speed from one minute to the next.
    """

    path: str
    threads: int
    exact: bool
    promised: bool
    effort: Effort
    beside: Beside | None = None


class WriteReference(msgspec.Struct, frozen=True, tag=True):
    """Keep a float32 file's log-probabilities over the passage in ``rows``."""

    path: str
    rows: str
    threads: int


class Compare(msgspec.Struct, frozen=True, tag=True):
    """Compare a file with what was kept in ``rows``."""

    path: str
    rows: str
    threads: int
    exact: bool


Request: TypeAlias = Convert | Survey | WriteReference | Compare
Reply = TypeVar("Reply")


class _Asked(msgspec.Struct, frozen=True):
    parent: int
    request: Request


def ask(request: Request, reply: type[Reply], descriptor: int) -> Reply:
    """Have a child do something; it inherits ``descriptor``. Raises ``ConfigError``."""
    done = subprocess.run(  # noqa: S603 - this module
        [sys.executable, "-m", __name__],
        input=msgspec.json.encode(_Asked(os.getpid(), request)),
        capture_output=True,
        pass_fds=(descriptor,),
        check=False,
    )
    if done.returncode:
        raise ConfigError(_reason(done, request))
    return msgspec.json.decode(done.stdout, type=reply)


def _reason(done: subprocess.CompletedProcess[bytes], request: Request) -> str:
    """The child's last line, or what ended it."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        path = request.source if isinstance(request, Convert) else request.path
        return f"{path}: llama.cpp was ended by {name}"
    return lines[-1].removeprefix("afterword: ") if lines else f"status {done.returncode}"


def main() -> None:
    """Read a request from standard input, write the reply to standard output."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=_Asked)
    _die_with(asked.parent)
    try:
        reply = _carry_out(asked.request)
    except ConfigError as error:
        sys.exit(f"afterword: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(reply))


def _carry_out(request: Request) -> Fidelity | Figures | None:
    # Only the child loads the library.
    from afterword.engine.llama import survey  # noqa: PLC0415
    from afterword.engine.llama.binding import convert  # noqa: PLC0415

    match request:
        case Convert(source, destination, form, threads):
            convert(Path(source), Path(destination), form, threads)
            return None
        case Survey(path):
            return survey.survey(Path(path), request)
        case WriteReference(path, rows, threads):
            survey.write_reference(Path(path), Path(rows), threads)
            return None
        case Compare(path, rows, threads, exact):
            return survey.fidelity(Path(path), Path(rows), threads, exact=exact)
    assert_never(request)


def _die_with(parent: int) -> None:
    """End with the process that asked, also if it is killed; where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("whoever asked is gone")


if __name__ == "__main__":
    main()
