"""Fixtures that several folders share."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from afterword import playground
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.old_tokens import OldTokens
from afterword.completion.service import CompletionService
from afterword.core.alias import Alias
from afterword.core.limits import Limits
from afterword.core.protocols import Engine
from afterword.engine.toy import toy_engine
from afterword.gateway.engine import RemoteEngine
from afterword.http.app import Access, create_app
from afterword.http.lifecycle import Lifecycle
from afterword.http.middleware import Observer
from afterword.ledger.database import connect, parse_url, prepare, sqlite_url
from afterword.ledger.keys import KeyStore
from afterword.ledger.tables import metadata
from ledger.values import Hand
from standins import services
from support.asgi import Client
from support.embedded import embedded_file
from support.offloaded import offloaded_engine, toy_gguf
from support.short_form import short_form

CREATED = 1_700_000_000
FOLDERS = {"clients": "e2e", "concurrency": "slow", "e2e": "e2e", "zoo": "slow"}
"""Folders below tests/ whose tests all have a marker."""
FIXTURES = {
    "browser": "browser",
    "embedded_model": "model",
    "postgres": "database",
    "redis_url": "database",
}
"""Fixtures whose tests have a marker, directly or through another fixture."""
# A law is not broken because the machine is busy.
settings.register_profile("whole", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("whole"), max_examples=5)
settings.load_profile("whole")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often the heavy proofs are repeated."""
    parser.addoption("--kills", type=int, default=1, help="times that a server is killed")
    parser.addoption("--law-examples", type=int, default=4, help="histories tried of each model")
    parser.addoption(
        "--gpu-layers", type=int, help="layers on a GPU of a llama that computes the toy models"
    )
    parser.addoption("--outage-s", type=float, default=0.0, help="how long a database is away")
    parser.addoption(
        "--short", action="store_true", help="of make test-gpu, what shows each law and rule once"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by folder and fixture, so that nobody forgets it, and put long files first."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        needed = {FOLDERS[folder]} if folder in FOLDERS else set()
        needed |= {FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES}
        for marker in sorted(needed):
            item.add_marker(marker)
    # These files take minutes: a worker that comes to one last would keep all others waiting.
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    if config.getoption("--short"):
        kept = short_form(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """What tests start can be interrupted, also if a shell runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _ledgers_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Servers and commands started by tests do not touch the ledger of the person who runs them."""
    os.environ["AFTERWORD_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))
    # The library reads it at its first batch, for the whole process: see ``multiply_row_by_row``.
    os.environ["GGML_CPU_TILED_MM"] = "0"


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The file of the embedded model, fetched if it is not here."""
    return embedded_file()


def make_client(
    engines: dict[str, Engine],
    *,
    limits: Limits | None = None,
    lifecycle: Lifecycle | None = None,
    keep_alive_s: float = 15.0,
    access: Access | None = None,
    observe: Observer | None = None,
    aliases: Mapping[str, Alias] | None = None,
    vocabularies: Mapping[str, OldTokens] | None = None,
) -> Client:
    """An app over these engines, with a clock and an entropy that repeat."""
    ticks = itertools.count()
    catalog = Catalog(
        [ServedModel(name, engine, CREATED) for name, engine in engines.items()],
        aliases or {"gpt-3.5-turbo-instruct": Alias(next(iter(engines)))},
        vocabularies,
    )
    entropy = random.Random(7).randbytes
    service = CompletionService(
        catalog, limits or Limits(), clock=lambda: CREATED + 0.5, entropy=entropy
    )
    app = create_app(
        service,
        lifecycle=lifecycle or Lifecycle(),
        clock=lambda: next(ticks) / 1000,
        entropy=entropy,
        keep_alive_s=keep_alive_s,
        access=access,
        observe=observe,
        public=playground.routes(),
        upstreams=lambda: [
            (name, stats)
            for name, engine in engines.items()
            if isinstance(engine, RemoteEngine)
            for stats in engine.upstream_stats()
        ],
    )
    return Client(app)


@pytest.fixture(scope="session")
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A server of toy models: ``toy``, ``toy-bos`` (adds BOS), ``plain`` (no infill)."""
    make: Callable[..., Engine] = toy_engine
    layers = request.config.getoption("--gpu-layers")
    if layers is not None:
        path = toy_gguf(tmp_path_factory.mktemp("offloaded") / "toy.gguf")
        make = partial(offloaded_engine, path, layers)
    engines = {"toy": make(), "toy-bos": make(adds_bos=True), "plain": make(infill=False)}
    # A device in software may be silent for longer, and a comment is no chunk; and a search (F3)
    # that time ended would find another middle than the one before.
    yield make_client(engines, limits=Limits(infill_s=3600), keep_alive_s=3600)
    for engine in engines.values():
        asyncio.run(engine.aclose())


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Makes servers of a test's own engine; closes it at the end."""
    opened: list[Engine] = []

    def make(
        engine: Engine,
        *,
        limits: Limits | None = None,
        lifecycle: Lifecycle | None = None,
        keep_alive_s: float = 15.0,
    ) -> Client:
        opened.append(engine)
        return make_client(
            {"toy": engine}, limits=limits, lifecycle=lifecycle, keep_alive_s=keep_alive_s
        )

    yield make
    for engine in opened:
        asyncio.run(engine.aclose())


@pytest.fixture(scope="session")
def postgres() -> Iterator[services.Postgres]:
    with services.postgres() as server:
        template = connect(parse_url(server.url("template1")))
        prepare(template)
        template.dispose()
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with services.redis() as url:
        yield url


_numbers = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger's database without a record, of each kind."""
    if request.param == "sqlite":
        return str(sqlite_url(tmp_path / "ledger.db"))
    server: services.Postgres = request.getfixturevalue("postgres")
    name = f"t{next(_numbers)}"
    server.sql(f"CREATE DATABASE {name}")
    return server.url(name)


@pytest.fixture
def empty_url(database_url: str) -> str:
    """A database without a table; with SQLite, a file that is not there."""
    if not database_url.startswith("sqlite"):
        engine = connect(parse_url(database_url))
        with engine.begin() as connection:
            metadata.drop_all(connection)
            connection.execute(sa.text("DROP TABLE alembic_version"))
        engine.dispose()
    return database_url


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def connected(database_url: str) -> Iterator[Callable[[], sa.Engine]]:
    """Makes engines of one database, as several servers have them."""
    engines: list[sa.Engine] = []

    def make() -> sa.Engine:
        engine = connect(parse_url(database_url))
        prepare(engine)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(connected: Callable[[], sa.Engine]) -> sa.Engine:
    return connected()


@pytest.fixture
def key_store(engine: sa.Engine, hand: Hand) -> KeyStore:
    return KeyStore(engine, clock=hand, entropy=random.Random(3).randbytes)
