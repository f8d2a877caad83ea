"""``create_app``: the ASGI application in another program's, with and without a lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from afterword import ConfigError, Settings, create_app
from support.asgi import Client
from support.tiny_gguf import make_gguf

BODY = {"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": 0}
HERE = {"host": "localhost"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    file = make_gguf(tmp_path_factory.mktemp("mounted") / "tiny.gguf")
    return Settings(models={"tiny": str(file)}, slots=2, threads=1)


async def test_it_opens_at_the_first_request(tiny: Settings) -> None:
    app = create_app(tiny)
    client = Client(app, HERE)
    first, second = await asyncio.gather(*(client.post("/v1/completions", BODY) for _ in range(2)))
    assert first.status == second.status == 200
    assert first.json()["choices"] == second.json()["choices"]
    async with app:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "tiny"
    # After its end it takes no more.
    assert (await client.post("/v1/completions", BODY)).status == 503


async def test_it_opens_anew(tiny: Settings) -> None:
    """Tests of the program around it enter one app again and again."""
    app = create_app(tiny)
    client = Client(app, HERE)
    for _ in range(2):
        async with app:
            assert (await client.post("/v1/completions", BODY)).status == 200
        assert (await client.post("/v1/completions", BODY)).status == 503
    assert [message["type"] for message in await live(app)] == [
        "lifespan.startup.complete", "lifespan.shutdown.complete",
    ]  # fmt: skip


async def test_mounted_under_a_path(tiny: Settings) -> None:
    inner = create_app(tiny)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with inner:
            yield

    outer = Starlette(routes=[Mount("/llm", inner)], lifespan=lifespan)
    async with lifespan(outer):
        client = Client(outer, HERE)
        assert (await client.post("/llm/v1/completions", BODY)).status == 200
        assert (await client.get("/llm/models")).status == 200
        assert (await client.get("/llm/")).status == 404
        # Programs that read the document find the paths where they are.
        described = (await client.get("/llm/openapi.json")).json()
        assert described["servers"] == [{"url": "/llm"}]
        assert "/v1/completions" in described["paths"]
        assert "servers" not in (await Client(inner, HERE).get("/openapi.json")).json()
        # The outer path's parameter names no model (R1).
        outer.routes.append(Mount("/{model}", inner))
        assert (await client.post("/team/v1/completions", BODY)).status == 200


async def test_strangers_are_let_in_only_if_the_settings_say_so(tiny: Settings) -> None:
    async with create_app(tiny) as closed:
        assert (await Client(closed).post("/v1/completions", BODY)).status == 401
    async with create_app(msgspec.structs.replace(tiny, no_auth=True)) as opened:
        assert (await Client(opened).post("/v1/completions", BODY)).status == 200


async def live(app: Any) -> list[Any]:
    """Send an app through a lifespan. Returns what it said."""
    asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    said: list[Any] = []

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    return said


async def test_a_lifespan(tiny: Settings, tmp_path: Path) -> None:
    said = await live(create_app(tiny))
    assert [message["type"] for message in said] == [
        "lifespan.startup.complete", "lifespan.shutdown.complete",
    ]  # fmt: skip
    wrong = Settings(models={"x": str(tmp_path / "none.gguf")})
    (failed,) = await live(create_app(wrong))
    assert failed["type"] == "lifespan.startup.failed"
    assert "no such file" in failed["message"]
    with pytest.raises(ConfigError, match="no such file"):
        async with create_app(wrong):
            pytest.fail("it was not opened")
