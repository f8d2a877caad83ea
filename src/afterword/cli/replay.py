"""``afterword replay``: sends recorded requests, and says what differs in shape."""

from __future__ import annotations

import http.client
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import msgspec
import rich_click as click

from afterword.cli.answer_shape import Difference, differences, folded
from afterword.cli.terminal import printable
from afterword.cli.texts import file_text
from afterword.core.errors import ConfigError
from afterword.core.repeated import repeated_name
from afterword.library.server_access import authorization, server_address

_KEY = "AFTERWORD_KEY"
_PATH = "/v1/completions"
_MOST_S = 1_000_000_000
"""As for the settings in seconds. A socket waits no more than about 292 years."""


class _Seconds(click.FloatRange):
    """Seconds within a range. NaN is in no range."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


class Recording(msgspec.Struct, frozen=True):
    """A line of the file: the ``request`` that was sent, and the ``response`` if it was kept.

    Of a streamed answer the response is an array of its chunks.
    """

    request: dict[str, Any]
    response: dict[str, Any] | list[Any] | None = None
    path: str = _PATH


@click.command(short_help="Send recorded requests and compare the answers' shapes.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="The server, with or without /v1.",
)
@click.option("--model", metavar="NAME", help="Ask for this model. [default: the recorded one]")
@click.option(
    "--timeout", "timeout_s", type=_Seconds(0, _MOST_S, min_open=True), default=300.0,
    show_default=True, metavar="SECONDS", help="How long to wait for an answer.",
)  # fmt: skip
def replay(file: Path, url: str, model: str | None, timeout_s: float) -> None:
    """Send the requests of FILE, and say what differs in shape.

    A line of FILE is {"request": {…}, "response": {…}}: the body of a completions request, and what
    another server answered, if that was kept: of a stream the array of its chunks. "path" names
    another route than /v1/completions. A line can also be the body alone. The key comes from the
    environment (AFTERWORD_KEY). Values are not compared: another model says something else.

    Exits with 1 if a request was refused or an answer differs. Keys that are new here are listed at
    the end, and are no difference.
    """
    server = server_address(url)
    headers = {"Content-Type": "application/json"} | authorization(os.environ.get(_KEY))
    # All lines are read before anything is sent.
    recordings = list(_recordings(file))
    if not recordings:
        raise ConfigError(f"{file}: has no requests")
    ask = partial(_ask, server, headers, timeout_s)
    different = 0
    new: Counter[str] = Counter()
    for number, recording in recordings:
        body = recording.request if model is None else {**recording.request, "model": model}
        found = list(_compare(recording, *ask(recording.path, body)))
        # Most answers have the same ones, and programs skip what they do not know.
        new.update(dict.fromkeys((each.path for each in found if each.is_new), 1))
        lines = [str(each) for each in found if not each.is_new]
        different += bool(lines)
        for line in lines:
            # It may quote a file or a server.
            click.echo(f"line {number}: {printable(line)}")
    for path, count in new.items():
        click.echo(f"new here, in {_counted(count, 'answer')}: {printable(path)}")
    total = len(recordings)
    click.echo(f"{_counted(total, 'request')}, {total - different} as recorded, {different} not")
    sys.exit(1 if different else 0)


def _counted(count: int, name: str) -> str:
    return f"1 {name}" if count == 1 else f"{count} {name}s"


def _recordings(file: Path) -> Iterator[tuple[int, Recording]]:
    """Yields each recording with its line's number. Raises ``ConfigError``."""
    # Only a newline ends a line: JSON may have U+2028 and its like inside strings.
    for number, line in enumerate(file_text(str(file)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _recording(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{file}, line {number}: is not a recorded request: {error}"
            ) from error


def _recording(line: str) -> Recording:
    """Returns the recording in a line. Raises ``ValueError`` or msgspec's errors for none."""
    parts = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    found = msgspec.json.decode(line, type=dict[str, Any])
    body = line
    if isinstance(found.get("request"), dict):
        body = bytes(parts["request"]).decode()
    else:
        found = {"request": found}
    # Of two values only one would be sent, where a server refuses both (R19). Some servers' answers
    # have a name twice, but nothing of them is sent.
    repeated = repeated_name(line, nested=False) or repeated_name(body, nested=True)
    if repeated is not None:
        raise ValueError(f"the key {repeated!r} is there twice")
    recording = msgspec.convert(found, Recording)
    path = recording.path
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or " " in path:
        raise ValueError(f"{path!r} is no path of a server")
    return recording


def _compare(recording: Recording, status: int, answer: Any) -> Iterator[Difference]:  # noqa: ANN401 - JSON
    """Yields what differs from what was recorded."""
    failed = isinstance(recording.response, dict) and "error" in recording.response
    # A stream that fails on its way ends with an error (S6).
    end = answer[-1] if isinstance(answer, list) and answer else answer
    error = end.get("error") if isinstance(end, dict) else None
    if status != http.HTTPStatus.OK and not failed:
        yield Difference(f"refused with {status}", _message(error))
    elif error is not None and not failed:
        yield Difference("broke off", _message(error))
    elif recording.response is not None:
        recorded: Any = recording.response
        if isinstance(recorded, list) and isinstance(answer, list):
            recorded, answer = folded(recorded), folded(answer)
        yield from differences(recorded, answer)


def _message(error: Any) -> str:  # noqa: ANN401 - JSON
    """Returns what an error says; other servers than OpenAI's have other shapes."""
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else "no message"


def _ask(
    server: SplitResult,
    headers: Mapping[str, str],
    timeout_s: float,
    path: str,
    body: Mapping[str, Any],
) -> tuple[int, Any]:
    """Returns the status and the answer; of a stream its events. Raises ``ConfigError``."""
    kind = http.client.HTTPSConnection if server.scheme == "https" else http.client.HTTPConnection
    connection = kind(server.hostname or "", server.port, timeout=timeout_s)
    try:
        connection.request(
            "POST", server.path.rstrip("/").removesuffix("/v1") + path, json.dumps(body), headers
        )
        reply = connection.getresponse()
        raw = reply.read().decode("utf-8", "replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        said = str(error) or type(error).__name__
        raise ConfigError(f"{server.geturl()}: does not answer: {said}") from error
    finally:
        connection.close()
    if reply.headers.get_content_type() == "text/event-stream":
        frames = [line[5:].strip() for line in raw.split("\n") if line.startswith("data:")]
        return reply.status, [_read(frame) for frame in frames if frame != "[DONE]"]
    return reply.status, _read(raw)


def _read(raw: str) -> Any:  # noqa: ANN401 - JSON
    """Returns a JSON value, an empty object for what is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return {}
