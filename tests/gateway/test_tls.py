"""Upstreams behind TLS: certificates of a test authority, checked over real sockets."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterword.core.errors import ConfigError
from conftest import make_client
from standins.upstreams import Certificate, Front, facts_of, listening
from support.asgi import Client


class Authority:
    """Signs certificates; ``file`` is its own certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "authority.pem"
        self._key = folder / "authority.key"
        _openssl(
            "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-subj", "/CN=our own authority", "-keyout", self._key, "-out", self.file,
        )  # fmt: skip

    def certificate(self, name: str) -> Certificate:
        """Make a certificate for a server; ``name`` is a ``subjectAltName``."""
        chain, key = (self._folder / f"{name.replace(':', '-')}.{kind}" for kind in ("pem", "key"))
        _openssl(
            "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-subj", "/CN=server", "-addext", f"subjectAltName={name}", "-keyout", key,
            "-out", chain, "-CA", self.file, "-CAkey", self._key,
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
        return Certificate(chain, key)

    def expired(self, certificate: Certificate) -> Certificate:
        """Sign the key of a server for a time that ended yesterday."""
        asked, chain = (self._folder / f"expired.{kind}" for kind in ("request", "pem"))
        _openssl(
            "x509", "-x509toreq", "-copy_extensions", "copy", "-in", certificate.chain,
            "-signkey", certificate.key, "-out", asked,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-copy_extensions", "copy", "-in", asked, "-CA", self.file,
            "-CAkey", self._key, "-days", "-1", "-out", chain,
        )  # fmt: skip
        return Certificate(chain, certificate.key)


def _openssl(*arguments: str | Path) -> str:
    return subprocess.run(
        ["openssl", *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def upstream(authority: Authority, client: Client) -> Iterator[str]:
    """The address of an Afterword with toy models behind TLS."""
    with listening(client.app, certificate=authority.certificate("IP:127.0.0.1")) as base:
        assert base.startswith("https://")
        yield f"afterword+{base}#toy"


@pytest.fixture
def trusting(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process trust the authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))


@pytest.mark.usefixtures("trusting")
async def test_an_authority_that_is_named_is_trusted(upstream: str, front: Front) -> None:
    (facts,) = facts_of(upstream)
    engine = front(upstream, facts=facts)
    body = {"model": "toy", "prompt": "a", "max_tokens": 9, "logit_bias": {"98": 100}}
    answer = await make_client({"toy": engine}).complete(**body)
    assert answer["choices"][0]["text"] == "b" * 9
    await engine.pool.probe(engine.pool.upstreams[0])
    assert engine.healthy()


def test_an_authority_that_is_not_known_is_refused_at_the_start(upstream: str) -> None:
    with pytest.raises(ConfigError) as refused:
        facts_of(upstream)
    origin = upstream.removeprefix("afterword+").removesuffix("/v1#toy")
    assert str(refused.value) == (
        f"model toy: no upstream answers: {origin}: its certificate is not accepted: "
        "unable to get local issuer certificate"
    )


async def test_an_authority_that_is_not_known_any_more_takes_the_upstream_down(
    upstream: str, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    engine = front(upstream)
    client = make_client({"toy": engine})
    with caplog.at_level(logging.WARNING, "afterword.upstream"):
        reply = await client.post("/v1/completions", {"model": "toy", "prompt": [97]})
    assert reply.status == 503
    assert "is down: its certificate is not accepted: unable to get local" in caplog.text
    assert (await client.get("/health")).status == 503


async def test_an_authority_that_is_added_to_the_folder_needs_no_restart(
    upstream: str,
    front: Front,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    pool = front(upstream).pool
    await pool.probe(pool.upstreams[0])
    assert not pool.upstreams[0].up
    name = _openssl("x509", "-hash", "-noout", "-in", authority.file).strip()
    (tmp_path / f"{name}.0").write_bytes(authority.file.read_bytes())
    await pool.probe(pool.upstreams[0])
    assert pool.upstreams[0].up


@pytest.mark.usefixtures("trusting")
def test_a_certificate_of_another_server_is_refused(authority: Authority, client: Client) -> None:
    certificate = authority.certificate("DNS:elsewhere.example")
    with (
        listening(client.app, certificate=certificate) as base,
        pytest.raises(ConfigError, match="not accepted: IP address mismatch"),
    ):
        facts_of(f"afterword+{base}#toy")


@pytest.mark.usefixtures("trusting")
def test_a_certificate_that_has_expired_is_refused(authority: Authority, client: Client) -> None:
    certificate = authority.expired(authority.certificate("IP:127.0.0.1"))
    with (
        listening(client.app, certificate=certificate) as base,
        pytest.raises(ConfigError, match="not accepted: certificate has expired"),
    ):
        facts_of(f"afterword+{base}#toy")


@pytest.mark.usefixtures("trusting")
def test_a_server_without_tls_is_said_to_be_one(client: Client) -> None:
    with listening(client.app) as base, pytest.raises(ConfigError, match="TLS failed: "):
        facts_of(f"afterword+{base.replace('http:', 'https:')}#toy")
