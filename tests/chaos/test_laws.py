"""What the storm's verdict notices: each law of the ledger, of the logs and of growth."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from afterword.core.account import UsageRecord
from chaos.bodies import MARK, Bodies
from chaos.book import Book, Entry, compare, worst_tokens
from chaos.samples import Sample, growths
from chaos.shifted import ClockShift, shifted
from chaos.verdict import of_files, of_logs, shortened
from chaos.weather import Weather
from chaos.wire import Reply, Wire
from standins.server import StandIn

NAMES = {"key-1": "free"}
BODY: dict[str, Any] = {"prompt": "abc", "max_tokens": 5}
RECORD = UsageRecord(
    id="cmpl-1", key_id="key-1", model="m", user="0", stream=False, status="answered",
    prompt_tokens=3, cached_tokens=0, completion_tokens=5, started_at=1.0, first_token_ms=1.0,
    duration_ms=2.0,
)  # fmt: skip


def answered(status: int = 200, **changed: Any) -> Book:
    """A book of one request with an answer."""
    book = Book()
    entry, body = book.begin(BODY, server="steady", key="free", kind="plain")
    assert body == {**BODY, "user": "0"}
    answer = {
        "id": "cmpl-1", "choices": [{"finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}, **changed,
    }  # fmt: skip
    book.took(entry, reply_of(json.dumps(answer).encode(), status=status))
    return book


def streamed(*events: str, left: bool = False) -> tuple[Book, Entry]:
    book = Book()
    entry, _ = book.begin(BODY, server="steady", key="free", kind="left")
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    book.took(entry, reply_of(body, kind="text/event-stream; charset=utf-8"), left=left)
    return book, entry


def reply_of(body: bytes, *, status: int = 200, kind: str = "application/json") -> Reply:
    reply = Reply()
    reply.status, reply.whole = status, True
    reply.headers["content-type"] = kind
    reply.body += body
    return reply


def chunk(text: str, finish: str | None = None, **more: Any) -> str:
    choices = [{"index": 0, "text": text, "finish_reason": finish}]
    return json.dumps({"id": "cmpl-1", "choices": choices, "usage": None, **more})


def test_an_equal_ledger() -> None:
    book = answered()
    sums, wrong = compare(book.entries, [RECORD], NAMES)
    assert (book.wrong, wrong) == ([], [])
    total = sums["free"]
    assert (total.requests, total.whole, total.recorded) == (1, 1, 1)
    assert (total.received_tokens, total.recorded_tokens, total.open_tokens) == (8, 8, 0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"completion_tokens": 6}, "told (3, 5), recorded (3, 6)"),
        ({"prompt_tokens": 2}, "told (3, 5), recorded (2, 5)"),
        ({"status": "client_gone"}, "as client_gone"),
        ({"id": "cmpl-2"}, "told"),
        ({"key_id": "key-2"}, "for another key"),
        ({"user": "7"}, "no request"),
        ({"user": None}, "no request"),
    ],
)
def test_a_record_that_differs(changed: dict[str, Any], reason: str) -> None:
    _, wrong = compare(answered().entries, [replace(RECORD, **changed)], NAMES)
    assert any(reason in one for one in wrong), wrong


def test_a_lost_answer_and_a_doubled_one() -> None:
    _, wrong = compare(answered().entries, [], NAMES)
    assert "not recorded" in wrong[0]
    assert "0 tokens recorded, 8 received" in wrong[1]
    _, wrong = compare(answered().entries, [RECORD, RECORD], NAMES)
    assert wrong == ["record cmpl-1: no request, or a second record of no. 0"]


def test_what_is_refused_is_not_recorded() -> None:
    envelope = {"message": "no", "type": "x", "param": None, "code": None}
    book = Book()
    entry, _ = book.begin(BODY, server="steady", key="free", kind="plain")
    book.took(entry, reply_of(json.dumps({"error": envelope}).encode(), status=400))
    assert compare(book.entries, [], NAMES)[1] == []
    _, wrong = compare(book.entries, [RECORD], NAMES)
    assert "refused with 400, and recorded as answered" in wrong[0]


@pytest.mark.parametrize(
    ("tokens", "status", "sound"),
    [(2, "client_gone", True), (1, "client_gone", False), (0, "lost", True), (6, "failed", False)],
)
def test_an_answer_that_its_client_left(tokens: int, status: Any, sound: bool) -> None:
    """It costs what was shown at least, and what was asked for at most; a lost one nothing."""
    _, entry = streamed(*[chunk("a")] * 4, left=True)
    assert (entry.ending, entry.least_tokens) == ("open", 2)
    entry = Entry(**{f: getattr(entry, f) for f in entry.__struct_fields__} | {"worst_tokens": 8})
    record = replace(RECORD, status=status, completion_tokens=tokens)
    _, wrong = compare([entry], [record], NAMES)
    assert (wrong == []) == sound


def test_a_whole_stream() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    last = json.dumps({"id": "cmpl-1", "choices": [], "usage": usage})
    book, entry = streamed(chunk("a"), chunk("b", "length"), last, "[DONE]")
    assert (book.wrong, entry.ending, entry.tokens) == ([], "whole", 8)
    _, cut = streamed(chunk("a"), chunk("b", "length"), last)
    assert cut.ending == "cut"
    error = json.dumps({"error": {"message": "m", "type": "t", "param": None, "code": "c"}})
    _, failed = streamed(chunk("a"), error)
    assert (failed.ending, failed.code) == ("failed", "c")


@pytest.mark.parametrize(
    "changed",
    [
        {"usage": {"prompt_tokens": 3, "completion_tokens": 500, "total_tokens": 503}},
        {"usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 9}},
        {"choices": []},
        {"choices": [{"finish_reason": "content_filter"}]},
        {"usage": None},
    ],
)
def test_an_answer_that_cannot_be(changed: dict[str, Any]) -> None:
    assert len(answered(**changed).wrong) == 1


def test_an_error_without_its_envelope() -> None:
    assert "cannot be read" in answered(status=500).wrong[0]


def test_the_worst_case_covers_what_is_asked() -> None:
    bodies = Bodies("m", random.Random(1), embedded=True)
    kinds = set()
    for _ in range(200):
        kind, body = bodies.honest()
        kinds.add(kind)
        made = body["max_tokens"] * max(body.get("n", 1), body.get("best_of") or 1)
        assert worst_tokens(body) >= made + 1
        assert MARK in json.dumps(body) or kind == "tokens"
    assert kinds == {"plain", "several", "best", "batch", "tokens", "stopped", "echoed", "infill",
                     "scored"}  # fmt: skip


def test_logs_and_files(tmp_path: Path) -> None:
    keys = {"free": "aw-0123456789abcdefghij"}
    log = tmp_path / "a.log"
    log.write_text("INFO all is well\nTask exception was never retrieved\n  File x\n")
    (reason,) = of_logs([log], keys)
    assert reason.startswith("a.log: Task exception was never retrieved / ")
    log.write_text(f"INFO {MARK}\nINFO {keys['free']}\n")
    assert list(of_logs([log], keys)) == [
        "a.log has a prompt or a completion", "a.log has the key free",
    ]  # fmt: skip
    log.rename(tmp_path / "p-000000.journal")
    assert "p-000000.journal stayed after the servers had stopped" in list(of_files(tmp_path, keys))


def sample(at_s: float, anonymous_mib: float, *, start: int = 1, age_s: float = 0.0) -> Sample:
    return Sample(server="steady", start=start, at_s=at_s, age_s=age_s,
                  anonymous_mib=anonymous_mib, files=30, threads=5)  # fmt: skip


@pytest.mark.parametrize(("last_mib", "flat"), [(310.0, True), (340.0, False), (200.0, True)])
def test_growth_within_a_process(last_mib: float, flat: bool) -> None:
    """The first third does not count: a process fills its caches there."""
    first = [sample(at_s, 100.0) for at_s in range(0, 1200, 5)]
    later = [
        sample(at_s, 300.0 + (last_mib - 300) * (at_s - 1200) / 2400)
        for at_s in range(1200, 3600, 5)
    ]
    found = list(growths(first + later, 3600.0))
    assert [(g.what, g.judged, g.flat) for g in found] == [
        ("anonymous_mib", True, flat), ("files", True, True), ("threads", True, True),
    ]  # fmt: skip


def test_growth_from_process_to_process() -> None:
    """At the same age: a young process has not taken yet what an old one has."""
    samples = [
        sample(1200 + 60 * start + age, 200.0 + age + 2 * start, start=start, age_s=float(age))
        for start in range(20)
        for age in range(0, 50, 5)
    ]
    between = [g for g in growths(samples, 3600.0) if "processes" in g.over]
    assert [(g.what, g.judged, g.flat) for g in between] == [
        ("anonymous_mib", True, False), ("files", True, True), ("threads", True, True),
    ]  # fmt: skip


def test_weather_excuses_only_what_it_met() -> None:
    weather = Weather()
    with weather.spell("killed", "victim"):
        pass
    (spell,) = weather.spells
    spell.began_s, spell.ended_s = 100.0, 110.0
    assert weather.met("victim", 90.0, 105.0, "killed")
    assert weather.met("victim", 105.0, None, "killed")
    assert not weather.met("steady", 90.0, 105.0, "killed")
    assert not weather.met("victim", 90.0, 95.0, "killed")
    assert not weather.met("victim", 112.0, 113.0, "killed")
    assert weather.met("victim", 112.0, 113.0, "killed", after_s=5)
    assert not weather.met("victim", 90.0, 105.0, "locked")


def test_reasons_of_one_kind_are_counted() -> None:
    reasons = [f"plain no. {i} of free on steady: 500" for i in range(10)]
    *shown, rest = shortened(["another", *reasons])
    assert shown == ["another", *reasons[:4]]
    assert rest.startswith("… and 6 more: plain no. # #: #")


def test_a_clock_is_moved(tmp_path: Path) -> None:
    """By the file, also from another process; the program's own calls see it."""
    clock = shifted(lambda: 1000.0, ClockShift(tmp_path / "clock"))
    assert clock() == 1000.0
    ClockShift(tmp_path / "clock").set(-30.5)
    assert clock() == 969.5


async def test_the_client_sees_bytes() -> None:
    async with StandIn() as server, Wire(server.port) as wire:
        await wire.send(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        reply = await wire.until_events(1)
        assert (reply.status, reply.streamed) == (200, True)
        whole = await wire.reply()
        assert whole.whole
        assert whole.events[-1] == "[DONE]"
        assert whole.event_count == len(whole.events) == 4
        server.connections[0].transport.abort()
        with pytest.raises(ConnectionResetError):
            await wire.reply(1)
        assert wire.closed
        await asyncio.sleep(0)
