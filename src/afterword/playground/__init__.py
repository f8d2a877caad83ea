"""The playground: a page with its styles and modules, served from the package unchanged.

The files are public and identical for every reader. The page gets everything else from the API.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Scripts, styles and answers come from this server only. Browsers ignore inline ones.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    # A browser keeps the files and asks on each visit whether they have changed.
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
_TAG = re.compile(r'"[^"]*"')
PAGE = "index.html"
# The list of languages. It is made from the folder, so a new language is one file.
LANGUAGES = "lang/index.js"


class Asset(msgspec.Struct, frozen=True):
    """A file of the playground."""

    body: bytes
    content_type: str
    etag: str


def load() -> Mapping[str, Asset]:
    """Read every file of the page, and list the languages. Returns the files by path."""
    found = dict(_walk(files(__name__) / "files", ""))
    return found | {LANGUAGES: _asset(LANGUAGES, _languages(found))}


def _languages(paths: Iterable[str]) -> bytes:
    """Returns a module with the modules of all languages by their names."""
    names = [path[len("lang/") : -len(".js")] for path in paths if path.startswith("lang/")]
    lines = [f'import * as l{i} from "./{name}.js";' for i, name in enumerate(names)]
    table = ", ".join(f'"{name}": l{i}' for i, name in enumerate(names))
    return "\n".join([*lines, f"export const LANGUAGES = {{ {table} }};", ""]).encode()


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        path = prefix + entry.name
        if entry.is_dir():
            found.extend(_walk(entry, f"{path}/"))
            continue
        found.append((path, _asset(path, entry.read_bytes())))
    return found


def _asset(path: str, body: bytes) -> Asset:
    kind = _CONTENT_TYPES[path.rsplit(".", 1)[1]]
    return Asset(body, kind, f'"{hashlib.sha256(body).hexdigest()[:20]}"')


def routes() -> list[Route]:
    """Routes of the page and of its files. They need no key, because the page asks for one."""
    playground, get = Playground(), ["GET"]
    return [
        Route("/", playground.page, methods=get),
        Route("/playground/{path:path}", playground.file, methods=get),
    ]


class Playground:
    """Endpoints of the page and of its files."""

    @cached_property
    def _assets(self) -> Mapping[str, Asset]:
        return load()

    async def page(self, request: Request) -> Response:
        """Returns the page."""
        return self._answer(request, PAGE)

    async def file(self, request: Request) -> Response:
        """Returns one file. Raises ``HTTPException`` (404) if no file has this path."""
        return self._answer(request, request.path_params["path"])

    def _answer(self, request: Request, path: str) -> Response:
        asset = self._assets.get(path)
        if asset is None:
            raise HTTPException(404)
        headers = {**_HEADERS, "etag": asset.etag}
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or asset.etag in _TAG.findall(known):
            return Response(status_code=304, headers=headers)
        return Response(asset.body, headers={**headers, "content-type": asset.content_type})
