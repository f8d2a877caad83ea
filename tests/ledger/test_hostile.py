"""What people may write into paths, queries, bodies and flags: an answer, never a fault."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from afterword.cli import cli
from afterword.core.account import KeyTerms
from afterword.core.errors import ApiError, ConfigError, InvalidRequest
from afterword.core.moments import END_OF_TIME_S, iso, parse_moment, parse_span
from afterword.ledger.keys import KeyStore
from afterword.ledger.tables import keys
from ledger.team import Team, team

NUMBERS = [
    "9" * 5000, "9" * 30, "-1", "0", "", " ", "+1", "1e3", "0x10", "1_000", "\u0663", "\xb2",
    "\uff11", "nan", "inf", "\0", "1\0", "\ud800", "1" + "0" * 400, "true", "null", "--", "1;2",
]  # fmt: skip
SPANS = [
    "999999w",
    "999999d",
    "999999999d",
    "\u0663d",
    "-1d",
    "1.5d",
    "9" * 5000 + "d",
    "1\0d",
    "d",
    "",
]
MOMENTS = [
    "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "10000-01-01", "2026-13-01",
    "\u0662\u0660\u0662\u0666-01-01", "9" * 5000, "\0", "\ud800", "2026-11-25T25:00", "-1",
    "2026-11-25T14:00+99:00", "T", "now",
]  # fmt: skip
TEXTS = ["a\0b", "\0", "\ud800", "\x1b[31m", "x" * 100_000, "..", "%", "'; DROP TABLE keys; --",
         "\N{RIGHT-TO-LEFT OVERRIDE}", "a\nb", " ", "é" * 300]  # fmt: skip


@pytest.fixture
async def running(engine: sa.Engine, tmp_path: Path) -> AsyncIterator[Team]:
    async with team(engine, tmp_path / "data") as opened:
        yield opened


def encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


async def test_admin_queries_and_paths(running: Team, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    admin = running.key("boss", admin=True)
    urls = [
        *(f"/admin/v1/usage/requests?limit={encoded(one)}" for one in NUMBERS),
        *(f"/admin/v1/usage/requests?after={encoded(one)}" for one in TEXTS),
        *(f"/admin/v1/usage?by={encoded(one)}" for one in TEXTS),
        *(f"/admin/v1/usage?key={encoded(one)}" for one in TEXTS),
        *(
            f"/admin/v1/usage?{name}={encoded(one)}"
            for name, one in itertools.product(("since", "until"), [*SPANS, *MOMENTS])
        ),
        *(f"/admin/v1/keys/{encoded(one)}" for one in TEXTS),
    ]
    for url in urls:
        reply = await admin.request("GET", url)
        assert reply.status in {200, 400, 404}, (url[:200], reply.status)
    for one in TEXTS:
        for method, end in (("DELETE", ""), ("POST", "/rotate")):
            reply = await admin.request(method, f"/admin/v1/keys/{encoded(one)}{end}", b"{}")
            assert reply.status in {400, 404}, (method, one[:200], reply.status)
    for url in ("limit=" + "9" * 5000, "limit=%00", "after=%00", f"limit={encoded(NUMBERS[10])}"):
        assert (await admin.get(f"/admin/v1/usage/requests?{url}")).status == 400
    assert (await admin.get("/admin/v1/keys/a%00b")).status == 400
    assert caplog.text == ""
    assert (await admin.get("/admin/v1/keys")).status == 200


async def test_admin_bodies(running: Team, caplog: pytest.LogCaptureFixture) -> None:
    """What is accepted can be shown afterwards."""
    caplog.set_level(logging.ERROR)
    admin = running.key("boss", admin=True)
    names = (f"n{i}" for i in itertools.count())
    numbers = [
        "9" * 5000,
        "9" * 30,
        str(2**63),
        str(2**53),
        "-1",
        "0",
        "1.5",
        "1e400",
        "true",
        "[]",
    ]
    raw = [
        *(f'{{"name": "{next(names)}", "{field}": {one}}}'
          for field in ("rpm", "tpm", "concurrent", "budget_tokens") for one in numbers),
        *(json.dumps({"name": next(names), "expires": one}) for one in SPANS),
        *(json.dumps({"name": one}) for one in TEXTS),
        *(json.dumps({"name": next(names), "models": [one]}) for one in TEXTS),
        json.dumps({"name": next(names), "models": ["m"] * 5000}),
        json.dumps({"name": next(names), "expires": "36525d"}),
        # Bytes that are not UTF-8.
        '{"name": "\udcff"}',
        '{"\udcff": "name"}',
    ]  # fmt: skip
    for body in raw:
        given = body.encode("utf-8", "surrogatepass")
        reply = await admin.request("POST", "/admin/v1/keys", given)
        assert reply.status in {200, 400, 413}, (body[:200], reply.status)
    for span in SPANS:
        given = json.dumps({"overlap": span}).encode()
        assert (await admin.request("POST", "/admin/v1/keys/boss/rotate", given)).status == 400
    cut = b'{"overlap": "\xff"}'
    assert (await admin.request("POST", "/admin/v1/keys/boss/rotate", cut)).status == 400
    listed = await admin.get("/admin/v1/keys")
    assert listed.status == 200
    assert all(key["expires_at"] is None or key["expires_at"] <= END_OF_TIME_S
               for key in listed.json()["data"])  # fmt: skip
    running.refresh()
    assert caplog.text == ""


@pytest.fixture
def afterword(database_url: str, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command; it succeeds, or fails with one line."""

    def call(*words: str) -> Result:
        flags = ("--database", database_url, "--data-dir", str(tmp_path))
        done = CliRunner().invoke(cli, [*words, *flags], catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            assert isinstance(done.exception, (ConfigError, ApiError)), (words, done.exc_info)
        return done

    return call


def test_commands(afterword: Callable[..., Result]) -> None:
    assert afterword("keys", "create", "a").exit_code == 0
    calls: list[tuple[str, ...]] = [
        *(("keys", "create", f"n{i}", f"--rpm={one}") for i, one in enumerate(NUMBERS)),
        *(("keys", "create", f"b{i}", f"--budget-tokens={one}") for i, one in enumerate(NUMBERS)),
        *(("keys", "create", f"e{i}", f"--expires={one}") for i, one in enumerate(SPANS)),
        *(("keys", "rotate", "a", f"--overlap={one}") for one in SPANS),
        *(("keys", "create", f"m{i}", f"--models={one}") for i, one in enumerate(TEXTS)),
        *((*command, one) for one in TEXTS
          for command in (("keys", "create"), ("keys", "show"), ("keys", "revoke"))),
        *(("usage", f"--{name}={one}")
          for one in (*SPANS, *MOMENTS) for name in ("since", "until")),
        *(("usage", f"--key={one}") for one in TEXTS),
    ]  # fmt: skip
    for words in calls:
        afterword(*words)
    for words in (("keys", "list"), ("keys", "show", "a"), ("usage",), ("db", "check")):
        assert afterword(*words).exit_code == 0, words
    refused = afterword("keys", "create", "long", "--expires", "999999w")
    assert "expected at most 36525d (100 years)" in str(refused.exception)


def test_a_ledger_with_moments_that_nobody_can_write(
    afterword: Callable[..., Result], engine: sa.Engine, key_store: KeyStore
) -> None:
    """Older versions took ``--expires 999999w``."""
    for name, moment in (("a", 1e12), ("b", -1e12), ("c", 1e300)):
        made = key_store.create(KeyTerms(name=name))
        with engine.begin() as connection:
            change = sa.update(keys).where(keys.c.id == made.view.id)
            connection.execute(change.values(expires_at=moment))
    assert afterword("keys", "list").exit_code == 0
    assert "of Unix time" in afterword("keys", "show", "a").stdout


def test_moments() -> None:
    for text in [*SPANS, *MOMENTS]:
        with suppress(InvalidRequest):
            assert isinstance(parse_span(text, param="x"), float)
        with suppress(InvalidRequest):
            assert isinstance(parse_moment(text, now_s=1e9, param="x"), float)
    assert parse_span("36525d", param="x") == 36_525 * 86_400
    assert iso(END_OF_TIME_S) == "9999-12-31T23:59:59Z"
    for odd in (-1.0, END_OF_TIME_S + 1, 1e300, float("inf"), float("nan")):
        assert iso(odd).endswith(" s of Unix time")


async def test_the_document_names_a_model_that_the_key_may_use(running: Team) -> None:
    cases: list[tuple[tuple[str, ...] | None, str]] = [
        (None, "toy"), (("other",), "other"), (("alias",), "alias"), (("none",), "MODEL"),
    ]  # fmt: skip
    for models, seen in cases:
        known = running.key(f"k-{seen}", models=models)
        text = (await known.get("/openapi.json")).body.decode()
        assert f'"{seen}"' in text
        page = (await known.get("/docs")).body.decode()
        for hidden in {"toy", "other", "alias"} - {seen}:
            assert f'"{hidden}"' not in text + page
            assert f"&quot;{hidden}&quot;" not in page


async def test_a_key_is_in_no_log_and_in_no_error(
    running: Team, caplog: pytest.LogCaptureFixture
) -> None:
    made = running.keys.create(KeyTerms(name="a", admin=True))
    running.refresh()
    known, secret = running.client.with_key(made.secret), made.secret
    upstream = "hf_AbCdEfGh0123456789"
    with caplog.at_level(logging.DEBUG):
        for path in (f"/v1/models/{secret}", f"/{secret}/v1", f"/v1/engines/{secret}/completions",
                     f"/admin/v1/keys/{secret}", f"/x/{secret.upper()}", f"/{'y' * 190}/{secret}",
                     f"/admin/v1/usage?key={secret}", f"/v1/models?api_key={secret}"):  # fmt: skip
            reply = await known.get(path)
            if reply.status != 200 and "/models/" not in path:
                assert secret not in reply.body.decode()
        await known.post("/v1/completions", {"model": secret, "prompt": "a"})
        await known.post("/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": secret})
        await known.post("/v1/completions", {"model": "toy", "prompt": "a", secret: 1})
        await known.post("/v1/completions", {"model": "toy", "structured_outputs": {secret: 1}})
        await running.client.with_key(upstream).get(f"/v1/models/{upstream}")
    assert caplog.text.count("request_id") >= 11
    assert secret[8:20].lower() not in caplog.text.lower()
    assert upstream not in caplog.text
