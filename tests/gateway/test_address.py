"""Addresses of upstreams are parsed, and malformed ones refused."""

from __future__ import annotations

import pytest

from afterword.core.errors import ConfigError
from afterword.gateway.address import Address, is_remote, parse_addresses


def test_what_is_in_an_address() -> None:
    (plain,) = parse_addresses("vllm+http://host:8000/v1")
    assert plain == Address("vllm", tls=False, host="host", port=8000, base="/v1")
    assert (plain.origin, plain.root) == ("http://host:8000", "")
    (full,) = parse_addresses("openai+https://[::1]/api/v1/#org/model")
    assert full == Address(
        "openai", tls=True, host="::1", port=443, base="/api/v1", model="org/model"
    )
    assert (full.origin, full.root) == ("https://[::1]:443", "/api")


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
    ],
)  # fmt: skip
def test_mistakes(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_addresses(source)
    assert "secret" not in str(caught.value)


def test_files_are_not_addresses() -> None:
    for source in ("/models/a.gguf", "hf:a/b/c.gguf", "pypi:a==1", "http://a/v1"):
        assert not is_remote(source)
