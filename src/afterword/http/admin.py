"""Keys and usage over HTTP: ``afterword keys`` and ``afterword usage`` for programs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Annotated, TypeAlias, TypeVar, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from afterword.completion.bodies import parse_object
from afterword.completion.fields import unrecognized, whole
from afterword.core.account import (
    KeyTerms,
    KeyView,
    Period,
    UsageBy,
    UsageQuery,
    UsageRecord,
    UsageSum,
)
from afterword.core.errors import InvalidRequest, LedgerUnavailable, PermissionDenied
from afterword.core.ledger import AdminQueries
from afterword.core.limits import MOST_KEY_LIMIT, MOST_KEY_MODELS, MOST_KEY_NAME_CHARACTERS
from afterword.core.moments import parse_moment, parse_span
from afterword.http.client import read_body
from afterword.http.exchange import exchange_of
from afterword.http.query import check_query

T = TypeVar("T", bound=msgspec.Struct)
_Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

_MOST_BODY_BYTES = 65_536
MOST_RECORDS = 1000
_MOST_ID_CHARACTERS = 200
_NUMBER = re.compile("[0-9]{1,9}")
GROUPS: Sequence[UsageBy] = get_args(UsageBy)
_SELECTING = ("since", "until", "key")
_encode = msgspec.json.Encoder().encode
# The bounds are for the OpenAPI document. The ledger checks them, because the command line needs
# that, too.
_Name: TypeAlias = Annotated[
    str,
    msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MOST_KEY_NAME_CHARACTERS}),
]
_Models: TypeAlias = Annotated[
    tuple[_Name, ...],
    msgspec.Meta(extra_json_schema={"minItems": 1, "maxItems": MOST_KEY_MODELS}),
]
_Most: TypeAlias = Annotated[
    int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MOST_KEY_LIMIT})
]


class NewKeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /admin/v1/keys. ``expires`` is a span from now, as in 90d."""

    name: _Name
    models: _Models | None = None
    rpm: _Most | None = None
    tpm: _Most | None = None
    concurrent: _Most | None = None
    budget_tokens: _Most | None = None
    budget_per: Period = "month"
    expires: str | None = None
    admin: bool = False


class RotateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /admin/v1/keys/{key}/rotate. The old one ends after ``overlap``, as in 1h."""

    overlap: str = "0s"


class Key(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="key"):
    """A key. Only the answer that makes it has its secret, ``key``. Times are Unix seconds."""

    id: str
    name: str
    prefix: str
    models: tuple[str, ...] | None
    rpm: int | None
    tpm: int | None
    concurrent: int | None
    budget_tokens: int | None
    budget_per: Period
    used_tokens: int
    reserved_tokens: int
    admin: bool
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    key: str | msgspec.UnsetType = msgspec.UNSET


class KeyList(msgspec.Struct, frozen=True, tag_field="object", tag="list"):
    """All keys."""

    data: list[Key]


class UsageList(msgspec.Struct, frozen=True, tag_field="object", tag="list"):
    """Sums."""

    data: list[UsageSum]


class RecordList(msgspec.Struct, frozen=True, tag_field="object", tag="list"):
    """Requests. If ``has_more``, ask again with ``after`` set to the last id."""

    data: list[UsageRecord]
    has_more: bool


class Administration:
    """The routes of operators. Each needs a key made with ``--admin``."""

    def __init__(self, queries: Callable[[], AdminQueries | None]) -> None:
        self._queries = queries

    def table(self) -> Sequence[BaseRoute]:
        """Paths, methods, endpoints."""
        return [
            _route("/admin/v1/keys", GET=self.keys, POST=self.create),
            # A name may contain slashes.
            Route("/admin/v1/keys/{key:path}/rotate", self.rotate, methods=["POST"]),
            _route("/admin/v1/keys/{key:path}", GET=self.key, DELETE=self.revoke),
            Route("/admin/v1/usage", self.usage, methods=["GET"]),
            Route("/admin/v1/usage/requests", self.requests, methods=["GET"]),
        ]

    async def keys(self, request: Request) -> Response:
        """Every key, page by page: a million of them never are in memory."""
        pages = self._for(request).keys()
        # What fails now still gets its status.
        first = await anext(pages, list[KeyView]())
        return StreamingResponse(_key_list(first, pages), media_type="application/json")

    async def key(self, request: Request) -> Response:
        """One key by id or name."""
        return _json(_key(await self._for(request).key(request.path_params["key"])))

    async def create(self, request: Request) -> Response:
        """Make a key. Only this answer shows its secret."""
        queries = self._for(request)
        given = await _body(request, NewKeyRequest)
        fields = msgspec.structs.asdict(given)
        expires = fields.pop("expires")
        if expires is not None:
            fields["expires_at"] = queries.now() + parse_span(expires, param="expires")
        made = await queries.create_key(KeyTerms(**fields))
        return _json(msgspec.structs.replace(_key(made.view), key=made.secret))

    async def rotate(self, request: Request) -> Response:
        """Give a key a new secret."""
        queries = self._for(request)
        given = await _body(request, RotateRequest)
        overlap_s = parse_span(given.overlap, param="overlap")
        made = await queries.rotate_key(request.path_params["key"], overlap_s)
        return _json(msgspec.structs.replace(_key(made.view), key=made.secret))

    async def revoke(self, request: Request) -> Response:
        """Revoke a key."""
        return _json(_key(await self._for(request).revoke_key(request.path_params["key"])))

    async def usage(self, request: Request) -> Response:
        """Sums by key, model, user or day."""
        queries = self._for(request, "by", *_SELECTING)
        given = request.query_params.get("by", "key")
        by = next((by for by in GROUPS if by == given), None)
        if by is None:
            raise InvalidRequest(
                f"'by' is {given[:40]!r}: expected key, model, user or day", param="by"
            )
        query = await self._query(queries, request)
        return await _list(await queries.usage(by, query))

    async def requests(self, request: Request) -> Response:
        """Requests one by one, in pages."""
        queries = self._for(request, "limit", "after", *_SELECTING)
        query = await self._query(queries, request)
        limit = request.query_params.get("limit", str(MOST_RECORDS))
        # Not isdecimal: it takes digits of all scripts, and int() refuses thousands of them.
        if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= MOST_RECORDS:
            raise InvalidRequest(
                f"'limit' is {limit[:40]!a}: expected 1 to {MOST_RECORDS}", param="limit"
            )
        after = request.query_params.get("after", "")
        if len(after) > _MOST_ID_CHARACTERS or (after and not after.isprintable()):
            raise InvalidRequest("'after' is no id of a record", param="after")
        records = await queries.requests(query, after=after, most=int(limit) + 1)
        return _json(RecordList(records[: int(limit)], len(records) > int(limit)))

    async def _query(self, queries: AdminQueries, request: Request) -> UsageQuery:
        moments = {
            name: parse_moment(text, now_s=queries.now(), param=name)
            for name in ("since", "until")
            if (text := request.query_params.get(name)) is not None
        }
        key = request.query_params.get("key")
        return UsageQuery(**moments, key_id=None if key is None else (await queries.key(key)).id)

    def _for(self, request: Request, *parameters: str) -> AdminQueries:
        """Returns the queries. ``parameters`` are those that the URL may have.

        Raises ``PermissionDenied`` if the key is not an operator's, ``InvalidRequest`` for a
        parameter that would be ignored.
        """
        if not exchange_of(request.scope).principal.admin:
            raise PermissionDenied(
                "This needs an admin key: afterword keys create NAME --admin makes one."
            )
        check_query(request.scope, *parameters)
        queries = self._queries()
        if queries is None:
            raise LedgerUnavailable("This server keeps no ledger.")
        return queries


def _route(path: str, **endpoints: _Endpoint) -> Route:
    """Returns one route for all methods of a path, so that a 405 names them all."""

    async def answer(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, answer, methods=list(endpoints))


async def _body(request: Request, kind: type[T]) -> T:
    raw = await read_body(request.scope, request.receive, _MOST_BODY_BYTES)
    return parsed(raw or b"{}", kind)


def parsed(body: bytes, kind: type[T]) -> T:
    """Returns a body by the rules of all bodies (H2, R18, R19). Raises ``InvalidRequest``."""
    known = dict.fromkeys(kind.__struct_fields__)
    given = parse_object(body, known)
    for name in given:
        if name not in known:
            raise unrecognized(name)
    # All numbers of these bodies are integers.
    values = {name: whole(value) for name, value in given.items()}
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            raise InvalidRequest(f"you must provide a {field.name} parameter", param=field.name)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "'").partition(" - at '$.")
        raise InvalidRequest(what, param=where.removesuffix("'") or None) from None


def _key(view: KeyView) -> Key:
    terms = view.terms
    return Key(
        id=view.id,
        name=terms.name,
        prefix=view.prefix,
        models=terms.models,
        rpm=terms.rpm,
        tpm=terms.tpm,
        concurrent=terms.concurrent,
        budget_tokens=terms.budget_tokens,
        budget_per=terms.budget_per,
        used_tokens=view.period_used_tokens,
        reserved_tokens=view.period_reserved_tokens,
        admin=terms.admin,
        created_at=int(view.created_at),
        expires_at=None if terms.expires_at is None else int(terms.expires_at),
        revoked_at=None if view.revoked_at is None else int(view.revoked_at),
    )


async def _key_list(
    first: list[KeyView], others: AsyncIterator[list[KeyView]]
) -> AsyncIterator[bytes]:
    yield b'{"object":"list","data":[%b' % b",".join(_encode(_key(one)) for one in first)
    async for page in others:
        yield b"".join(b",%b" % _encode(_key(one)) for one in page)
    yield b"]}"


async def _list(rows: Iterable[object]) -> Response:
    """Returns a list of any length. A thread writes it, row by row, and the loop is free."""

    def write() -> bytes:
        return b'{"object":"list","data":[%b]}' % b",".join(map(_encode, rows))

    return Response(await asyncio.to_thread(write), media_type="application/json")


def _json(value: object) -> Response:
    return Response(_encode(value), media_type="application/json")
