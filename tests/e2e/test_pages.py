"""A page of another site, and one from a file, in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
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
# Reads streams as mikupad and KoboldAI Lite do: bytes as they come, lines as they are complete.
WRITE = """async ([url, body]) => {
  const reply = await fetch(url, {
    method: "POST", headers: {"content-type": "application/json", "accept": "text/event-stream"},
    body: JSON.stringify(body),
  });
  if (!reply.ok) return {status: reply.status, said: (await reply.json()).error.message};
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", text = "", tops = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const [choice] = JSON.parse(line.slice(6)).choices;
      text += choice.text;
      if (choice.logprobs) tops.push(...choice.logprobs.top_logprobs);
    }
  }
  return {status: reply.status, text, tops};
}"""
# Requests of the pages' own code, as it sends them with its default settings.
WRITERS: Mapping[str, Mapping[str, Any]] = {
    "mikupad": {
        "prompt": "Once", "temperature": 0.7, "penalize_nl": False, "presence_penalty": 0,
        "frequency_penalty": 0, "top_p": 0.95, "top_k": 40, "min_p": 0, "stream": True,
        "max_tokens": 12, "logprobs": 10, "repetition_penalty": 1.1, "ban_eos_token": False,
        "repetition_penalty_range": 256,
    },
    "KoboldAI Lite": {
        "max_tokens": 12, "temperature": 0.75, "top_p": 0.92, "logprobs": 5, "stop": ["\nUser:"],
        "presence_penalty": 0.05, "prompt": "Once", "stream": True,
    },
}  # fmt: skip
SDK = """async ([url, body]) => {
  const {default: OpenAI} = await import("/node_modules/openai/index.mjs");
  const client = new OpenAI({baseURL: url, apiKey: "unused", dangerouslyAllowBrowser: true});
  const chunks = [];
  for await (const chunk of await client.completions.create({...body, stream: true})) {
    chunks.push(chunk.choices[0].text);
  }
  const whole = await client.completions.create(body);
  let param;
  try { await client.completions.create({...body, n: 0}); } catch (error) { param = error.param; }
  return {chunks, text: whole.choices[0].text, request: whole._request_id, param};
}"""
REFUSED = """async (url) => {
  try { await fetch(url, {headers: {"x-stainless-lang": "js"}}); return "read"; }
  catch (error) { return error.name; }
}"""


@contextmanager
def site_of(folder: Path) -> Iterator[str]:
    """A site on another port, of the files of a folder and an empty page. Gives its origin."""
    (folder / "page.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = partial(QuietFiles, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class QuietFiles(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A site with an empty page. Gives its origin and the page's file."""
    folder = tmp_path_factory.mktemp("site")
    with site_of(folder) as origin:
        yield origin, folder / "page.html"


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


@pytest.mark.parametrize("name", WRITERS)
def test_the_request_of_a_page_is_answered(
    browser: Browser, site: tuple[str, Path], name: str
) -> None:
    """mikupad is opened from a file, KoboldAI Lite from a site of the internet."""
    origin, file = site
    address, allowed = (
        (file.as_uri(), "null") if name == "mikupad" else (f"{origin}/page.html", origin)
    )
    body = {**WRITERS[name], "model": "toy", "seed": 3}
    app = make_client({"toy": toy_engine()}, access=Access(origins=(allowed,), guarded=True)).app
    with http_server(app) as server:
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        page = browser.new_page()
        page.goto(address)
        got = page.evaluate(WRITE, [url, body])
        page.close()
        plain = httpx2.post(url, json={**body, "stream": False}, timeout=None).json()["choices"][0]
    assert got == {
        "status": 200, "text": plain["text"], "tops": plain["logprobs"]["top_logprobs"],
    }  # fmt: skip


def test_the_sdk_in_a_page(browser: Browser, node_folder: Path) -> None:
    """OpenAI's SDK for Node, with all the headers that it sends by itself."""
    body = {"model": "toy", "prompt": "Once", "max_tokens": 8, "temperature": 0}
    with site_of(node_folder) as origin:
        access = Access(origins=(origin,), guarded=True)
        with http_server(make_client({"toy": toy_engine()}, access=access).app) as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            page = browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.goto(f"{origin}/page.html")
            got = page.evaluate(SDK, [url, body])
            page.close()
            plain = httpx2.post(f"{url}/completions", json=body, timeout=None).json()
    assert got["text"] == "".join(got["chunks"]) == plain["choices"][0]["text"]
    assert got["request"].startswith("req_")
    assert got["param"] == "n"
