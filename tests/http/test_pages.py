"""Pages of other sites: preflights, and what a page may read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from afterword.engine.toy import toy_engine
from afterword.http.app import Access
from afterword.http.origins import OriginHeaders, Preflights
from conftest import make_client
from support.asgi import Client, Reply

APP, FILE, EVIL = "https://app.example", "null", "https://evil.example"
# What openai-node sends besides the key.
HEADERS = (
    "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": HEADERS,
}
Make = Callable[..., Client]


@pytest.fixture
def make() -> Make:
    def server(*origins: str, guarded: bool = True) -> Client:
        client = make_client({"toy": toy_engine()}, access=Access(origins=origins, guarded=guarded))
        client.headers["host"] = "localhost:8000"
        return client

    return server


async def ask(client: Client, origin: str, **more: str) -> Reply:
    headers = {"origin": origin, **PREFLIGHT, **{k.replace("_", "-"): v for k, v in more.items()}}
    return await client.request("OPTIONS", "/v1/completions", headers=headers)


async def test_an_allowed_page_may_send_every_header(make: Make) -> None:
    reply = await ask(make(APP), APP)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == APP
    assert reply.headers["access-control-allow-headers"] == HEADERS
    assert "POST" in reply.headers["access-control-allow-methods"]


async def test_an_allowed_page_of_the_internet_reaches_a_server_at_home(make: Make) -> None:
    reply = await ask(make(APP), APP, access_control_request_private_network="true")
    assert reply.status == 200
    assert reply.headers["access-control-allow-private-network"] == "true"


async def test_other_pages_get_neither(make: Make) -> None:
    for client in (make(APP), make(APP, FILE)):
        reply = await ask(client, EVIL, access_control_request_private_network="true")
        assert reply.status == 400
        assert reply.error["message"] == "Disallowed CORS origin."
        assert "access-control-allow-origin" not in reply.headers
        posted = await client.request("POST", "/v1/completions", b"{}", headers={"origin": EVIL})
        assert posted.status == 401
        assert "access-control-allow-origin" not in posted.headers


async def test_a_page_from_a_file(make: Make) -> None:
    """Its origin is null, if the operator allows that."""
    reply = await ask(make(APP, FILE), FILE)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, FILE)
    assert (await ask(make(APP), FILE)).status == 400


async def test_all_origins_need_no_key_either(make: Make) -> None:
    """What * says is what it does; without a key, too."""
    client = make("*")
    for origin in (EVIL, FILE):
        reply = await ask(client, origin, access_control_request_private_network="true")
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
        assert reply.headers["access-control-allow-headers"] == HEADERS
        body = b'{"model": "toy", "prompt": "a", "max_tokens": 1}'
        posted = await client.request("POST", "/v1/completions", body, headers={"origin": origin})
        assert (posted.status, posted.headers["access-control-allow-origin"]) == (200, "*")


async def test_a_host_that_is_not_this_machine_stays_out(make: Make) -> None:
    """Names that lead here are refused with all origins, too."""
    client = make("*")
    headers = {"origin": EVIL, "host": "evil.example"}
    assert (await client.request("GET", "/v1/models", headers=headers)).status == 401


async def test_a_page_may_read_the_headers(make: Make) -> None:
    reply = await make(APP).request("GET", "/v1/models", headers={"origin": APP})
    exposed = set(reply.headers["access-control-expose-headers"].split(", "))
    limits = {
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    }
    assert exposed >= {"x-request-id", "openai-processing-ms", "retry-after", *limits}
    assert {"x-request-id", "openai-processing-ms"} <= reply.headers.keys()


async def test_a_preflight_has_what_every_answer_has(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Its headers, a line in the log, and an envelope if it is refused (H1)."""
    caplog.set_level(logging.INFO, "afterword.access")
    for origin in (APP, EVIL):
        reply = await ask(make(APP), origin)
        assert {"openai-processing-ms", "openai-version"} <= reply.headers.keys()
        line = json.loads(caplog.records[-1].getMessage())
        assert line["request_id"] == reply.headers["x-request-id"]
        assert (line["method"], line["status"]) == ("OPTIONS", reply.status)


async def test_errors_can_be_read(make: Make) -> None:
    for path, status in (("/v1/completions", 400), ("/completion", 404)):
        reply = await make(APP).request("POST", path, b"{", headers={"origin": APP})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, APP)


async def test_a_request_that_looks_like_a_preflight_is_answered_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """What follows an answer would fail, in the log alone."""
    reply = await make(APP).request("GET", "/health", headers={"origin": APP, **PREFLIGHT})
    assert reply.status == 200
    assert reply.json()["status"] == "ok"
    assert reply.headers["access-control-allow-origin"] == APP
    assert not caplog.records


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_request_passes(kind: str) -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    preflights = Preflights(app, [APP])
    await OriginHeaders(preflights, preflights.cors)({"type": kind}, receive, send)
    assert passed == [kind]
