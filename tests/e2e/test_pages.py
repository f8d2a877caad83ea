"""A page of another site, and one from a file, in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from afterword.engine.toy import toy_engine
from afterword.http.app import Access
from conftest import make_client
from e2e.browser import PATIENCE_MS
from support.http_server import http_server

# As openai-node sends a stream from a page.
STREAM = """async (url) => {
  const reply = await fetch(url, {
    method: "POST",
    headers: {
      "authorization": "Bearer sk-none", "content-type": "application/json",
      "x-stainless-lang": "js", "x-stainless-os": "Unknown",
      "x-stainless-runtime": "browser:chrome",
      "x-stainless-retry-count": "0", "x-stainless-package-version": "6.0.0",
    },
    body: JSON.stringify({model: "toy", prompt: "a", max_tokens: 5, temperature: 0, stream: true}),
  });
  const text = await reply.text();
  return {status: reply.status, id: reply.headers.get("x-request-id"), text};
}"""
REFUSED = """async (url) => {
  try { await fetch(url, {headers: {"x-stainless-lang": "js"}}); return "read"; }
  catch (error) { return error.name; }
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A site on another port with an empty page. Gives its origin and the page's file."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "page.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}", folder / "page.html"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["site", "file", "all"])
def test_an_allowed_page_streams(browser: Browser, site: tuple[str, Path], kind: str) -> None:
    origin, file = site
    address = file.as_uri() if kind == "file" else f"{origin}/page.html"
    allowed = {"site": origin, "file": "null", "all": "*"}[kind]
    app = make_client({"toy": toy_engine()}, access=Access(origins=(allowed,), guarded=True)).app
    with http_server(app) as server:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        got = page.evaluate(STREAM, f"http://127.0.0.1:{server.port}/v1/completions")
        page.close()
    assert got["status"] == 200
    assert got["id"].startswith("req_")
    assert got["text"].endswith("data: [DONE]\n\n")


def test_another_page_reads_nothing(browser: Browser, site: tuple[str, Path]) -> None:
    origin, file = site
    access = Access(origins=(f"{origin}0",), guarded=True)
    with http_server(make_client({"toy": toy_engine()}, access=access).app) as server:
        page = browser.new_page()
        for address in (f"{origin}/page.html", file.as_uri()):
            page.goto(address)
            url = f"http://127.0.0.1:{server.port}/v1/models"
            assert page.evaluate(REFUSED, url) == "TypeError"
        page.close()
