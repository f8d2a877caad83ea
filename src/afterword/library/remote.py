"""A model behind HTTP: an Afterword server with the library's interface."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from afterword.core import errors, wire
from afterword.core.account import Rates
from afterword.core.errors import ApiError, ConfigError, InvalidRequest, UpstreamFailed
from afterword.library.answers import TextChunk, TextCompletion
from afterword.library.backend import ChunkSource, ModelFacts, Opener, SpecialNames
from afterword.library.patience import Patience
from afterword.library.server_access import authorization, server_address

T = TypeVar("T")
_CONNECT_S = 10.0
_IDLE_S = 2.0
"""After which a connection is not used again: some servers close it after five."""
_END = b"[DONE]"
_DATA = b"data:"
_JSON = {"content-type": "application/json"}
_SHOWN_CHARACTERS = 200
_SECONDS = re.compile(r"[0-9]{1,6}")
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _IdsAnswer(msgspec.Struct):
    tokens: list[int]


class _TextAnswer(msgspec.Struct):
    prompt: str


class RemoteBackend:
    """Answers by a server's routes. Errors are those that the server sent.

    ``patience`` may wait out those that say when to come back; streams have none.
    """

    def __init__(self, client: httpx2.AsyncClient, model: wire.Model, patience: Patience) -> None:
        self._client = client
        self._patience = patience
        self._streams: set[RemoteChunks] = set()
        said = model.afterword
        fingerprint = str(said.get("system_fingerprint", ""))
        self.facts = ModelFacts(model.id, model.max_model_len, fingerprint)
        self._own_name = str(said.get("alias_of") or model.id)
        self._is_chat = said.get("template") is not None
        # Under an alias with ``tokens`` ids are OpenAI's.
        self._ids_name = model.id if said.get("tokens") is None else self._own_name

    @property
    def scored_name(self) -> str:
        """See ``Backend``."""
        if self._is_chat:
            raise InvalidRequest(
                f"{self.facts.name} answers prompts in a chat (template=chat), so it scores no "
                f"texts: ask for {self._own_name}.",
                param="model",
            )
        return self._ids_name

    async def complete(self, body: bytes) -> TextCompletion:
        """See ``Backend``."""
        answer = await self._post("/v1/completions", self._named(body))
        return _read(answer, TextCompletion)

    async def open(self, body: bytes) -> ChunkSource:
        """See ``Backend``."""
        request = self._client.build_request(
            "POST", "/v1/completions", content=self._named(body), headers=_JSON
        )
        response = await _send(self._client, request, stream=True)
        if response.status_code != httpx2.codes.OK:
            raw = await _whole(response)
            raise error_of(response.status_code, raw, response.headers)
        chunks = RemoteChunks(response, self._streams.discard)
        self._streams.add(chunks)
        return chunks

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See ``Backend``."""
        body = {
            "model": self.facts.name,
            "prompt": text,
            "add_special_tokens": add_special_tokens,
        }
        raw = await self._post("/tokenize", msgspec.json.encode(body))
        return _read(raw, _IdsAnswer).tokens

    async def detokenize(self, ids: msgspec.Raw) -> str:
        """See ``Backend``."""
        body = {"model": self._ids_name, "tokens": ids}
        raw = await self._post("/detokenize", msgspec.json.encode(body))
        return _read(raw, _TextAnswer).prompt

    async def special_names(self) -> SpecialNames:
        """See ``Backend``."""
        request = self._client.build_request(
            "GET", "/tokenizer_info", params={"model": self.facts.name}
        )
        return _read(await self._ask(request), SpecialNames)

    async def end_streams(self) -> None:
        """Close the streams that nobody closed."""
        for chunks in list(self._streams):
            await chunks.close()

    async def _post(self, path: str, body: bytes) -> bytes:
        return await self._ask(
            self._client.build_request("POST", path, content=body, headers=_JSON)
        )

    async def _ask(self, request: httpx2.Request) -> bytes:
        while True:
            try:
                answer = await _ask(self._client, request)
            except ApiError as error:
                if not await self._patience.outlasts(error):
                    raise
            else:
                self._patience.answered()
                return answer

    def _named(self, body: bytes) -> bytes:
        """Returns a body with a model, because the server may require one (R1)."""
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if "model" in fields and bytes(fields["model"]) != b"null":
            return body
        name = msgspec.Raw(msgspec.json.encode(self.facts.name))
        return msgspec.json.encode({**fields, "model": name})


class RemoteChunks:
    """The events of one response. A stream that ends without ``[DONE]`` is an error (S6).

    ``closed`` is called with it at its end.
    """

    def __init__(self, response: httpx2.Response, closed: Callable[[RemoteChunks], object]) -> None:
        self._response = response
        self._closed = closed
        self._parts = response.aiter_bytes()
        self._rest = b""
        self._over = False
        self._pulling = False

    async def pull(self) -> list[TextChunk]:
        """See ``ChunkSource``."""
        while not self._over:
            part = await self._part()
            if self._over:
                # Another task has closed the stream.
                return []
            if part is None:
                raise UpstreamFailed("The server's stream broke off before its end.")
            *lines, self._rest = (self._rest + part).split(b"\n")
            chunks = [chunk for line in lines for chunk in self._chunks(line)]
            if chunks:
                return chunks
        return []

    async def _part(self) -> bytes | None:
        """Returns the next bytes, None at their end."""
        self._pulling = True
        try:
            return await anext(self._parts, None)
        except httpx2.HTTPError as error:
            if self._over:
                return None
            raise _broken(error) from error
        finally:
            self._pulling = False

    def _chunks(self, line: bytes) -> list[TextChunk]:
        """Returns the chunk of a line, if it has one. Comments and blank lines have none."""
        data = line.removeprefix(_DATA).strip()
        if not line.startswith(_DATA) or not data or self._over:
            return []
        if data == _END:
            self._over = True
            return []
        if data.startswith(b'{"error"'):
            raise error_of(self._response.status_code, data)
        return [_read(data, TextChunk)]

    async def close(self) -> None:
        """See ``ChunkSource``."""
        self._over = True
        self._closed(self)
        if not self._pulling:
            # The loop would close it at the same time as what it reads from, and complain.
            await self._parts.aclose()
        await self._response.aclose()


def connecting(
    url: str,
    *,
    key: str | None,
    model: str | None,
    timeout_s: float,
    patience: Callable[[], Patience] = Patience,
) -> Opener:
    """Returns what connects to the server at ``url``.

    It raises ``ConfigError`` for an address that is none, and ``ApiError`` if the server cannot be
    reached, refuses the key or does not serve ``model``. ``patience`` makes that of the connection;
    by default it has none.
    """
    return partial(_connect, url, key, model, timeout_s, patience)


@asynccontextmanager
async def _connect(
    url: str,
    key: str | None,
    model: str | None,
    timeout_s: float,
    patience: Callable[[], Patience],
) -> AsyncIterator[RemoteBackend]:
    async with _client(url, key, timeout_s) as client:
        backend = RemoteBackend(client, await _described(client, model), patience())
        try:
            yield backend
        finally:
            await backend.end_streams()


def _client(url: str, key: str | None, timeout_s: float) -> httpx2.AsyncClient:
    """Returns a client of the server. Raises ``ConfigError``."""
    server_address(url)
    if type(timeout_s) not in {int, float} or not timeout_s > 0:
        raise ConfigError(f"timeout_s = {timeout_s!r}: expected a number of seconds above 0")
    try:
        return httpx2.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers=authorization(key),
            timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_S),
            # Each request has a connection; the server decides how many sequences run.
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=_IDLE_S),
        )
    except (httpx2.InvalidURL, ValueError, ImportError) as error:
        # An odd name of a host, or a proxy in the environment that cannot be used.
        raise ConfigError(f"{url}: there is no way to this server: {error}") from error


async def _described(client: httpx2.AsyncClient, model: str | None) -> wire.Model:
    if model is not None:
        # No listing has the names that an alias takes for all others (R1).
        request = client.build_request("GET", f"/v1/models/{quote(model or '-')}")
        return _read(await _ask(client, request), wire.Model)
    raw = await _ask(client, client.build_request("GET", "/v1/models"))
    for one in _read(raw, wire.ModelList).data:
        return one
    raise errors.ModelNotFound("-")


async def _ask(client: httpx2.AsyncClient, request: httpx2.Request) -> bytes:
    """Returns the body of an answer. Raises ``ApiError`` for an error."""
    response = await _send(client, request)
    raw = await _whole(response)
    if response.status_code != httpx2.codes.OK:
        raise error_of(response.status_code, raw, response.headers)
    return raw


async def _send(
    client: httpx2.AsyncClient, request: httpx2.Request, *, stream: bool = False
) -> httpx2.Response:
    try:
        return await client.send(request, stream=stream)
    except httpx2.HTTPError as error:
        raise _broken(error) from error


async def _whole(response: httpx2.Response) -> bytes:
    try:
        return await response.aread()
    except httpx2.HTTPError as error:
        raise _broken(error) from error
    finally:
        await response.aclose()


def _broken(error: httpx2.HTTPError) -> UpstreamFailed:
    """Returns the error of a request that came to nothing."""
    if isinstance(error, httpx2.ReadTimeout):
        return UpstreamFailed("The server was silent for longer than the timeout.")
    said = str(error).rstrip(".") or type(error).__name__
    url = error.request.url
    return UpstreamFailed(
        f"The server {url.scheme}://{url.netloc.decode()} cannot be reached, or broke off: {said}."
    )


def _read(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except _UNREADABLE as error:
        raise UpstreamFailed(f"The answer is not that of an Afterword server: {error}") from error


def error_of(status: int, raw: bytes, headers: Mapping[str, str] = _NO_HEADERS) -> ApiError:
    """Returns the error of an answer: the class that the server raised, with all that it said."""
    said = headers.get("retry-after", "")
    # A date would need the server's clock, and Afterword sends seconds.
    rest_s = int(said) if _SECONDS.fullmatch(said) else None
    try:
        body = msgspec.json.decode(raw, type=wire.ErrorEnvelope).error
    except _UNREADABLE:
        shown = raw[:_SHOWN_CHARACTERS].decode(errors="replace")
        return UpstreamFailed(
            f"The server answered with status {status}: {shown}", retry_after_s=rest_s
        )
    kind = _KINDS.get((status, body.code)) or _BY_STATUS.get(status, ApiError)
    # Some classes write their own message; this one is the server's.
    error = kind.__new__(kind)
    ApiError.__init__(error, body.message, param=body.param, code=body.code, retry_after_s=rest_s)
    if isinstance(error, errors.RateLimited):
        error.limit, error.rates = "", Rates()
    return error


def _kinds() -> list[type[ApiError]]:
    found: list[type[ApiError]] = [ApiError]
    for kind in found:
        found += kind.__subclasses__()
    return found


_KINDS: Mapping[tuple[int, str | None], type[ApiError]] = {
    (kind.status, kind.default_code): kind for kind in reversed(_kinds())
}
_BY_STATUS: Mapping[int, type[ApiError]] = {kind.status: kind for kind in reversed(_kinds())}
