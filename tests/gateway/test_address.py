"""Addresses of upstreams are parsed, and malformed ones refused."""

from __future__ import annotations

import asyncio

import pytest

from afterword.core.alias import Alias
from afterword.core.errors import ConfigError
from afterword.engine.toy import toy_engine
from afterword.gateway.address import Address, is_remote, parse_addresses
from conftest import make_client
from standins.upstreams import facts_of, listening
from support.asgi import Client


def test_what_is_in_an_address() -> None:
    (plain,) = parse_addresses("vllm+http://host:8000/v1")
    assert plain == Address("vllm", tls=False, host="host", port=8000, base="/v1")
    assert (plain.origin, plain.root) == ("http://host:8000", "")
    (full,) = parse_addresses("openai+https://[::1]/api/v1/#org/model")
    assert full == Address(
        "openai", tls=True, host="::1", port=443, base="/api/v1", model="org/model"
    )
    assert (full.origin, full.root) == ("https://[::1]:443", "/api")


def test_names_beyond_ascii_are_sent_in_ascii() -> None:
    """The Host header and the first line of a request have no other characters."""
    (found,) = parse_addresses("vllm+http://b\u00fccher.example/b\u00fc%20/v1")
    assert (found.host, found.base) == ("xn--bcher-kva.example", "/b%C3%BC%20/v1")


def test_the_interface_of_a_link_local_address_is_not_sent() -> None:
    (found,) = parse_addresses("vllm+http://[fe80::1%eth0]:8000/v1")
    assert found.host == "fe80::1%eth0"
    assert found.authority == "[fe80::1]:8000"
    assert found.origin == "http://[fe80::1%eth0]:8000"


def test_several() -> None:
    addresses = parse_addresses("vllm+http://a:1/v1  vllm+http://b:2/v1")
    assert [address.host for address in addresses] == ["a", "b"]


@pytest.mark.parametrize(
    "source",
    [
        "gpt+http://a/v1", "vllm+ftp://a/v1", "vllm+http:///v1", "vllm+http://a:x/v1",
        "vllm+http://a:99999/v1", "vllm+http://a/v1?x=1", "vllm+http://a/v1 openai+http://b/v1",
        "vllm+http://a/v1 vllm+http://a/v1", "vllm+http://user:secret@a/v1",
        "vllm+http://user:secret@a:x/v1", "other+http://user:secret@a/v1",
        "vllm+http://a:0/v1", "vllm+http://a..b/v1", f"vllm+http://{'a' * 64}.b/v1",
        "vllm+http://a\0/v1", "vllm+http://a/\x7f/v1", "vllm+http://a/v1#\x1b[2J",
    ],
)  # fmt: skip
def test_mistakes(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_addresses(source)
    assert "secret" not in str(caught.value)


def test_files_are_not_addresses() -> None:
    for source in ("/models/a.gguf", "hf:a/b/c.gguf", "pypi:a==1", "http://a/v1"):
        assert not is_remote(source)


def test_an_alias_is_no_other_model() -> None:
    """An Afterword with one model needs no ``#MODEL``, whatever its model is called here."""
    one, other = toy_engine(), toy_engine()
    with listening(make_client({"toy": one}, aliases={"old": Alias("toy")}).app) as base:
        (facts,) = facts_of(f"afterword+{base}", name="big")
        assert facts.model == "toy"
        (facts,) = facts_of(f"afterword+{base}", name="old")
        assert facts.model == "old"
    with (
        listening(make_client({"toy": one, "more": other}).app) as base,
        pytest.raises(ConfigError, match=r"serves gpt-3\.5-turbo-instruct, more, toy; choose one"),
    ):
        facts_of(f"afterword+{base}", name="big")
    for engine in (one, other):
        asyncio.run(engine.aclose())


def test_another_server_than_the_dialect_s_is_said_to_be_one(client: Client) -> None:
    """Before, the message was that it does not serve the model."""
    with listening(client.app) as base, pytest.raises(ConfigError, match=r"has no GET /version$"):
        facts_of(f"vllm+{base}")
