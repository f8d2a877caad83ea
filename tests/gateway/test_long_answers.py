"""Long answers of an upstream: a thread reads them in slices, and what comes meanwhile waits.

Calls are counted by the length of what they get, and threads by name, so nothing depends on speed.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.core.job import Ended, Event, Sampled
from afterword.core.limits import Limits
from afterword.gateway import long_payload
from afterword.gateway.dialects.chunk_reader import ChunkReader
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT
from afterword.gateway.dialects.stream_reader import PackedTops
from afterword.gateway.engine import RemoteEngine
from afterword.gateway.failures import StreamBroke
from afterword.gateway.lenient import decoder
from afterword.gateway.long_payload import LongPayload
from afterword.gateway.pool import attempt
from afterword.gateway.transport import sse
from afterword.gateway.vocabulary import Pieces
from conftest import make_client
from standins.server import FACTS, Exchange, StandIn
from standins.upstreams import engine_of, hasty
from support.asgi import Client

PATH = "/v1/completions"
TOKENS = 40


class Inner(msgspec.Struct):
    words: list[str] = []
    numbers: list[float | None] | None = None
    tops: list[dict[str, float] | None] | None = None
    rows: list[list[tuple[float | None, int, str | None]] | None] = []


class Outer(msgspec.Struct):
    items: list[Inner] | None = None
    text: str | None = None
    usage: Any = None
    ids: list[int] | None = None


WORDS = st.text('ab"\\,{}[]é\n', max_size=5)
NUMBERS = st.floats(-9, 9)
INNERS = st.builds(
    Inner,
    st.lists(WORDS, max_size=20),
    st.none() | st.lists(st.none() | NUMBERS, max_size=20),
    st.none() | st.lists(st.none() | st.dictionaries(WORDS, NUMBERS, max_size=3), max_size=9),
    st.lists(
        st.none() | st.lists(st.tuples(st.none() | NUMBERS, st.integers(0, 9), st.none() | WORDS)),
        max_size=9,
    ),
)
OUTERS = st.builds(
    Outer,
    st.none() | st.lists(INNERS, max_size=3),
    st.none() | st.text(max_size=40),
    st.none() | st.integers() | st.dictionaries(WORDS, st.lists(st.integers()), max_size=2),
    st.none() | st.lists(st.integers(0, 999), max_size=30),
)
_read = decoder(Outer)


def plain(value: Any) -> Any:
    """A value with lists in the place of long arrays."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | long_payload.LongArray):
        return [plain(item) for item in value]
    return value


@given(OUTERS, st.integers(1, 60), st.sampled_from([None, 1]), st.booleans())
def test_slices_are_read_as_the_whole(
    outer: Outer, size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(msgspec.to_builtins(outer), indent=indent, ensure_ascii=ascii_only).encode()
    expected = msgspec.json.decode(text, type=Outer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_payload, "_SLICE_BYTES", size)
        read = _read(LongPayload(text))
        if isinstance(outer.usage, dict):  # nobody reads its arrays
            read.usage = expected.usage = None
        assert plain(read) == plain(expected)


@given(st.binary(max_size=60) | OUTERS.map(msgspec.json.encode), st.integers(0, 200))
def test_what_is_no_json_is_refused_as_a_short_one_is(text: bytes, cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_payload, "_SLICE_BYTES", 8)
        try:
            _read(text[:cut])
        except StreamBroke:
            with pytest.raises(StreamBroke):
                plain(_read(LongPayload(text[:cut])))


@given(
    st.lists(st.integers(0, 99), max_size=20), st.slices(20).filter(lambda s: s.step in (None, 1))
)
def test_slices_of_a_long_array(numbers: list[int], part: slice) -> None:
    pieces = [numbers[at : at + 3] for at in range(0, len(numbers), 3)]
    array = long_payload.LongArray(lambda: map(msgspec.json.encode, pieces), msgspec.json.decode)
    assert list(array[part]) == numbers[part]
    assert len(array[part]) == len(numbers[part])
    assert list(array[1:][part]) == numbers[1:][part]


TOPS = st.lists(st.lists(st.tuples(st.integers(0, 2**40), NUMBERS), max_size=3), max_size=9)


@given(TOPS, TOPS, st.slices(9).filter(lambda s: s.step in (None, 1)))
def test_packed_tops_are_the_list(tops: list[Any], more: list[Any], part: slice) -> None:
    packed = PackedTops(tops)
    packed.extend(more)
    both = [*tops, *more]
    assert list(packed) == both
    assert len(packed) == len(both)
    assert list(packed[part]) == both[part]
    assert [packed[at] for at in range(-len(both), len(both))] == both + both


@given(
    st.lists(st.text("ab ", max_size=30), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["data: ", "data:", ": x\ndata: ", "event: error\ndata: "]),
    st.lists(st.integers(0, 200), max_size=8), st.integers(0, 40),
)  # fmt: skip
def test_long_events_do_not_depend_on_the_split(
    texts: list[str], end: str, field: str, cuts: list[int], long: int
) -> None:
    data = "".join(f"{field}{text}\n\n" for text in texts).replace("\n", end).encode() + b"\n"
    splitter = sse.EventSplitter()
    expected = splitter.feed(data)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "LONG_BYTES", long)
        splitter = sse.EventSplitter()
        found = [p for start, stop in pairwise(edges) for p in splitter.feed(data[start:stop])]
    assert found == expected
    errors = [isinstance(payload, sse.ErrorPayload) for payload in found]
    assert errors == [field.startswith("event")] * len(found)


def test_a_long_event_is_not_copied() -> None:
    splitter = sse.EventSplitter()
    assert splitter.feed(b"data: " + b"a" * long_payload.LONG_BYTES) == []
    (payload,) = splitter.feed(b"\n\n")
    assert isinstance(payload, bytearray)
    assert payload == b"a" * long_payload.LONG_BYTES


def test_no_decoder_gets_more_than_a_slice() -> None:
    n, sizes = 20_000, list[int]()
    outer = Outer([Inner(["a"] * n, [1.5] * n, [{"a": 1.5, "b": 2.5}] * n)], ids=[1] * n)
    text = msgspec.json.encode(outer)

    def reading(wanted: Any) -> Callable[[bytes], Any]:
        decode = msgspec.json.Decoder(wanted).decode

        def noting(part: bytes) -> Any:
            sizes.append(len(part))
            return decode(part)

        return noting

    read = long_payload.read_long(LongPayload(text), Outer, reading)
    assert plain(read) == plain(outer)
    assert len(text) > 8 * max(sizes)
    assert max(sizes) <= (1 << 16) + 10
    assert read.items is not None
    assert isinstance(read.items[0].tops, long_payload.LongArray)  # not 20,000 objects at once


def test_pieces_are_learned_from_two_threads() -> None:
    """Each has one id, whoever learns it."""
    pieces = Pieces([b"a"])
    found: list[list[int]] = [[], []]
    begin = threading.Barrier(2)

    def learn(at: int) -> None:
        begin.wait()
        found[at] = [pieces.id_of(b"%d" % number) for number in range(3000)]

    threads = [threading.Thread(target=learn, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert [pieces[i] for i in found[0]] == [b"%d" % number for number in range(3000)]


class Held:
    """Long payloads wait in the thread until ``go``; ``came`` is set when one is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = asyncio.Event()
        self.go = threading.Event()
        self.threads = list[str]()
        loop, read = asyncio.get_running_loop(), ChunkReader.read

        def waiting(reader: ChunkReader, payload: bytes | LongPayload) -> list[Event]:
            self.threads.append(threading.current_thread().name)
            if isinstance(payload, LongPayload):
                loop.call_soon_threadsafe(self.came.set)
                assert self.go.wait(60)
            return read(reader, payload)

        monkeypatch.setattr(ChunkReader, "read", waiting)
        self.attempts = list[attempt.Attempt]()
        send = attempt.Attempt._run_on

        async def noting(made: attempt.Attempt, connection: Any) -> None:
            self.attempts.append(made)
            await send(made, connection)

        monkeypatch.setattr(attempt.Attempt, "_run_on", noting)


@pytest.fixture
async def held(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.go.set()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer than the payload of few tokens is long."""
    for module in (attempt, sse):
        monkeypatch.setattr(module, "LONG_BYTES", 600)
    monkeypatch.setattr(long_payload, "_SLICE_BYTES", 50)


class Behind:
    def __init__(self, upstream: StandIn, engine: RemoteEngine, client: Client) -> None:
        self.upstream = upstream
        self.engine = engine
        self.client = client

    async def ask(self, **more: Any) -> Any:
        body = {"model": "toy", "prompt": "a", "max_tokens": TOKENS, "logprobs": 2, **more}
        return await self.client.post(PATH, body)


async def behind(dialect: str = "vllm", **options: float) -> AsyncIterator[Behind]:
    async with StandIn() as upstream:
        facts = FACTS
        if dialect == "openai":
            facts = msgspec.structs.replace(
                FACTS, context_tokens=UNKNOWN_CONTEXT, vocabulary=None, max_logprobs=5
            )
        source = upstream.address.replace("vllm+", f"{dialect}+")
        engine = engine_of(source, [facts], options=hasty(**options))
        yield Behind(upstream, engine, make_client({"toy": engine}, limits=Limits(max_logprobs=10)))
        await engine.aclose()


@pytest.fixture
async def vllm() -> AsyncIterator[Behind]:
    async for made in behind():
        yield made


def choice(tokens: int, finish: str | None = None, index: int = 0, *, named: bool = True) -> Any:
    """A chunk with tokens a."""
    name, other = ("token_id:97", "token_id:98") if named else ("a", "b")
    logprobs = {
        "tokens": [name] * tokens, "token_logprobs": [-1.5] * tokens,
        "top_logprobs": [{name: -1.5, other: -2.5}] * tokens, "text_offset": list(range(tokens)),
    }  # fmt: skip
    said: dict[str, Any] = {"index": index, "text": "a" * tokens, "finish_reason": finish}
    said |= {"logprobs": logprobs} | ({"token_ids": [97] * tokens} if named else {})
    return {"choices": [said], "usage": {"prompt_tokens": 1, "completion_tokens": TOKENS}}


def event(chunk: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(chunk).encode()


DIALECTS = ["vllm", "afterword", "openai", "sglang", "llamacpp"]


def answer_of(dialect: str) -> Any:
    """A whole answer in one payload."""
    n = TOKENS
    if dialect == "sglang":
        meta = {
            "finish_reason": {"type": "length"}, "prompt_tokens": 1, "completion_tokens": n,
            "output_token_logprobs": [[-1.5, 97, None]] * n,
            "output_top_logprobs": [[[-1.5, 97, None], [-2.5, 98, None]]] * n,
        }  # fmt: skip
        return {"text": "a" * n, "output_ids": [97] * n, "meta_info": meta}
    if dialect == "llamacpp":
        tops = [{"id": 97, "logprob": -1.5, "bytes": [97]}, {"id": 98, "logprob": -2.5}]
        scored = {"id": 97, "logprob": -1.5, "top_logprobs": tops}
        return {
            "content": "a" * n, "tokens": [97] * n, "stop": True, "stop_type": "limit",
            "tokens_predicted": n, "completion_probabilities": [scored] * n, "timings": {},
        }  # fmt: skip
    return choice(n, "length", named=dialect != "openai")


@pytest.mark.parametrize("kind", ["event", "parts", "plain"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_long_answer_is_the_short_one(
    monkeypatch: pytest.MonkeyPatch, dialect: str, stream: bool, kind: str
) -> None:
    raw = json.dumps(answer_of(dialect)).encode()

    def answer(exchange: Exchange) -> None:
        if kind == "plain":
            exchange.answer(200, raw)
            return
        exchange.begin()
        data = b"data: %b\n\ndata: [DONE]\n\n" % raw
        step = 100 if kind == "parts" else len(data)
        for at in range(0, len(data), step):
            exchange.part(data[at : at + step])
        exchange.transport.write(b"0\r\n\r\n")

    async for made in behind(dialect):
        made.upstream.behaviour = answer
        before = await made.ask(stream=stream)
        assert before.status == 200, before.body
        for module in (attempt, sse):
            monkeypatch.setattr(module, "LONG_BYTES", 600)
        monkeypatch.setattr(long_payload, "_SLICE_BYTES", 50)
        monkeypatch.setattr("afterword.gateway.dialects.stream_reader._MANY_TOPS", 3)
        after = await made.ask(stream=stream)
        assert comparable(after.body) == comparable(before.body)
        (connection, *others) = {c for c in made.upstream.connections if not c.gone.is_set()}
        assert not others
        assert not connection.transport.is_closing()


def comparable(body: bytes) -> bytes:
    """A body without its id, and the time of its making."""
    text = body.decode()
    for name in ('"id":"', '"created":'):
        while name in text:
            start = text.index(name)
            text = text[:start] + text[text.index(",", start) + 1 :]
    return text.encode()


@pytest.mark.usefixtures("short")
async def test_a_thread_reads_what_is_long_and_the_loop_the_rest(vllm: Behind, held: Held) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.part(event(choice(1)))
        exchange.part(event(choice(TOKENS - 2)))
        exchange.part(event(choice(1, "length")))
        exchange.end()

    vllm.upstream.behaviour = answer
    held.go.set()
    reply = await vllm.ask()
    assert reply.json()["choices"][0]["text"] == "a" * TOKENS
    here = threading.current_thread().name
    assert [name == here for name in held.threads] == [True, False, True, True]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("packets", [False, True])
async def test_what_comes_meanwhile_waits(vllm: Behind, held: Held, packets: bool) -> None:
    """In its order, whether it came with the long event or behind it, and unread meanwhile."""
    rest = [event(choice(2)), event(choice(TOKENS - 20)), event(choice(3, "length"))]
    asked = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        exchange.begin()
        first = event(choice(15))
        exchange.part(first if packets else first + b"".join(rest) + b"data: [DONE]\n\n")
        if packets:
            await asked.wait()
            for part in rest:
                exchange.part(part)
            exchange.part(b"data: [DONE]\n\n")
        exchange.transport.write(b"0\r\n\r\n")

    vllm.upstream.behaviour = answer
    asking = asyncio.create_task(vllm.ask())
    await held.came.wait()
    asked.set()
    await vllm.client.get("/health")
    assert not asking.done()
    assert len(held.threads) == 1
    held.go.set()
    reply = await asking
    assert reply.json()["choices"][0]["text"] == "a" * TOKENS
    assert reply.json()["usage"]["completion_tokens"] == TOKENS


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("error", ["event", "lost", "json", "held"])
async def test_an_error_behind_or_in_a_long_event(vllm: Behind, held: Held, error: str) -> None:
    """The stream has its tokens, if they are good, and then the error; nobody rests."""
    good = event(choice(15))

    async def answer(exchange: Exchange) -> None:
        exchange.begin()
        if error == "json":
            exchange.part(good.replace(b"token_logprobs", b"x", 1))
        elif error == "event":
            exchange.part(good + b'data: {"error": {"message": "no"}}\n\n')
        else:
            exchange.part(good)
            if error == "held":
                await held.came.wait()
            exchange.transport.close()

    vllm.upstream.behaviour = answer
    if error != "held":
        held.go.set()
    asking = asyncio.create_task(vllm.ask(stream=True))
    await held.came.wait()
    held.go.set()
    body = (await asking).body
    assert body.count(b'"text":"a"') == (0 if error == "json" else 15)
    assert b'"error"' in body


@pytest.mark.usefixtures("short")
async def test_an_abort_meanwhile_drops_the_result(vllm: Behind, held: Held) -> None:
    """The connection closes at once; the next request is answered."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.part(event(choice(15)))

    vllm.upstream.behaviour = answer
    asking = asyncio.create_task(vllm.ask())
    await held.came.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await vllm.upstream.connections[-1].gone.wait()
    held.go.set()
    vllm.upstream.behaviour = lambda exchange: exchange.answer(
        200, json.dumps(choice(TOKENS, "length")).encode()
    )
    reply = await vllm.ask()
    assert reply.json()["choices"][0]["text"] == "a" * TOKENS


@pytest.mark.usefixtures("short")
async def test_timers_do_not_fire_meanwhile(vllm: Behind, held: Held) -> None:
    """The wait is not for the upstream, and the reader is the thread's."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.part(event(choice(1)))
        exchange.part(event(choice(TOKENS - 1, "length")))
        exchange.end()

    vllm.upstream.behaviour = answer
    asking = asyncio.create_task(vllm.ask())
    await held.came.wait()
    (one,) = held.attempts
    one._heard_s = -1e9
    one._look_back()
    one._conclude_late()
    held.go.set()
    assert (await asking).json()["choices"][0]["text"] == "a" * TOKENS


@pytest.mark.usefixtures("short")
async def test_a_sibling_that_is_closed_meanwhile_gets_nothing_more(
    vllm: Behind, held: Held
) -> None:
    tokens = [0, 0]

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.part(event(choice(1)) + event(choice(1, index=1)))
        both = choice(15)
        both["choices"] += choice(15, index=1)["choices"]
        last = event(choice(1)) + event(choice(TOKENS - 16, "length", index=1))
        exchange.part(event(both) + last + b"data: [DONE]\n\n")
        exchange.transport.write(b"0\r\n\r\n")

    vllm.upstream.behaviour = answer
    asking = asyncio.create_task(vllm.ask(n=2, temperature=1))
    await held.came.wait()
    (one,) = held.attempts
    emit = one.emit

    def noting(given: list[Event]) -> None:
        for made in given:
            if isinstance(made, Sampled):
                tokens[made.seq] += len(made.tokens)
            assert not isinstance(made, Ended) or made.seq == 1
        emit(given)

    one.emit = noting
    one.close(0)
    held.go.set()
    await asking
    assert tokens == [0, TOKENS - 1]
