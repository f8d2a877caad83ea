"""``GET /``: the files of the playground, and their headers."""

from __future__ import annotations

import re

import pytest

from afterword.playground import LANGUAGES, load
from support.asgi import Client

ASSETS = load()


async def test_the_page(client: Client) -> None:
    reply = await client.get("/")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.body == ASSETS["index.html"].body
    assert (await client.request("HEAD", "/")).status == 200


@pytest.mark.parametrize("path", ASSETS)
async def test_files(client: Client, path: str) -> None:
    reply = await client.get(f"/playground/{path}")
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    assert reply.status == 200
    assert reply.headers["content-type"].startswith(kinds[path.rsplit(".", 1)[1]])
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    policy = dict(
        part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    for directive in ("script-src", "style-src", "connect-src"):
        assert policy[directive] == "'self'"
    assert "unsafe" not in str(policy)


async def test_files_that_are_known_are_not_sent_again(client: Client) -> None:
    first = await client.get("/playground/main.js")
    etag = first.headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        again = await client.request("GET", "/playground/main.js", headers={"if-none-match": known})
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == etag
    other = await client.request("GET", "/playground/main.js", headers={"if-none-match": '"x"'})
    assert other.status == 200


@pytest.mark.parametrize(
    "path", ["nothing.js", "", "../__init__.py", "..%2f__init__.py", "lang", "lang/", "/etc/passwd"]
)
async def test_nothing_else_is_served(client: Client, path: str) -> None:
    reply = await client.get(f"/playground/{path}")
    assert reply.status == 404
    assert reply.error["message"].startswith("Invalid URL (GET /playground/")


def test_a_language_is_a_file() -> None:
    listed = ASSETS[LANGUAGES].body.decode()
    files = [path for path in ASSETS if path.startswith("lang/") and path != LANGUAGES]
    assert len(files) >= 2
    for path in files:
        name = path[len("lang/") : -len(".js")]
        pattern = rf'import \* as (\w+) from "\./{name}\.js";.*"{name}": \1'
        assert re.search(pattern, listed, re.DOTALL)
        source = ASSETS[path].body.decode()
        assert re.search(r'^export const name = "[^"]+";$', source, re.MULTILINE)
        assert re.search(r'^export const tag = "[^"]+";$', source, re.MULTILINE)
    # No other file names a language.
    others = set(ASSETS) - set(files) - {LANGUAGES}
    assert not any("中文" in ASSETS[path].body.decode() for path in others)


def test_nothing_is_inline_and_nothing_from_elsewhere() -> None:
    page = ASSETS["index.html"].body.decode()
    assert not re.search(r"<style|<script(?![^>]* src=)| style=| on\w+=|javascript:", page)
    for path, asset in ASSETS.items():
        text = asset.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://(?!\$)|@import|\burl\(|innerHTML|outerHTML|eval\(", text), (
            path
        )


def test_whatever_is_named_is_there() -> None:
    pages = {name for name in ASSETS if name.endswith(".html")}
    named = [
        target
        for page in pages
        for target in re.findall(r'"/playground/([^"]+)"', ASSETS[page].body.decode())
    ]
    assert "main.js" in named
    for path, asset in ASSETS.items():
        folder = path.rpartition("/")[0]
        named += [
            f"{folder}/{target}" if folder else target
            for target in re.findall(r'from "\./([^"]+)"', asset.body.decode())
        ]
    assert set(named) <= set(ASSETS)
    # Every file is used.
    assert set(ASSETS) - set(named) == pages
