"""Clients that never stop: honest ones, such that leave, read slowly or speak no HTTP at all."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httptools
import msgspec

from chaos.bodies import BadRequest, Bodies, bad_request, hostile_bytes
from chaos.book import Book, Entry
from chaos.servers import Member
from chaos.weather import Weather
from chaos.wire import LIMIT_S, Reply, Wire, request_bytes

_LOST = (OSError, asyncio.IncompleteReadError, httptools.HttpParserError)
_PAUSE_S = 0.3
_LIMITS = {
    "limited": "rate_limit_exceeded", "few": "rate_limit_exceeded",
    "small": "insufficient_quota", "large": "insufficient_quota",
}  # fmt: skip
"""The code of a 429, by the names of the keys that may get one."""


class Target(msgspec.Struct, frozen=True):
    """A server, what to ask there, and whether its answers are its own."""

    member: Member
    bodies: Bodies
    embedded: bool


class Clients:
    """What all clients share. ``over`` ends them after the request that they are at."""

    def __init__(
        self, targets: list[Target], keys: Mapping[str, str], book: Book, weather: Weather,
        dice: random.Random,
    ) -> None:  # fmt: skip
        self.book = book
        self.counts: Counter[str] = Counter()
        self.over = False
        self._targets = targets
        self._keys = keys
        self._weather = weather
        self._dice = dice
        self._canaries: dict[str, str] = {}

    async def go_on(self, act: Callable[[Target], Awaitable[None]]) -> None:
        """Do one thing again and again, on one server after another."""
        while not self.over:
            target = self._dice.choice(self._targets)
            if target.member.running:
                self.counts[act.__name__] += 1
                await act(target)
            await asyncio.sleep(self._dice.uniform(0, 2 * _PAUSE_S))

    def acts(self, crowd: int) -> list[Callable[[Target], Awaitable[None]]]:
        """What the clients do, one act for each client."""
        common = [self.honest] * 5 + [self.leaving] * 2 + [self.hostile, self.mistaken]
        return [
            *common * crowd, self.canary, self.tokenizing, self.pipelining, self.half_closing,
            self.upgrading, self.reading_slowly, self.compressed,
        ]  # fmt: skip

    # Honest clients.

    async def honest(self, target: Target) -> None:
        kind, body = target.bodies.honest()
        await self.ask(target, kind, body)

    async def canary(self, target: Target) -> None:
        """An answer that a seed fixes is the same on every process (D1)."""
        if not target.embedded:
            return
        entry, reply = await self.ask(target, "canary", target.bodies.canary(), key="free")
        if entry.ending == "whole" and reply is not None:
            answer = json.loads(reply.body)
            text = json.dumps([answer["choices"], answer["system_fingerprint"]])
            if self._canaries.setdefault("all", text) != text:
                self.book.wrong.append(f"{entry}: another answer than the first one")

    async def tokenizing(self, target: Target) -> None:
        """A text comes back whole."""
        text = target.bodies.text()
        model = target.bodies.short()["model"]
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        said = await self._plain(target, "/tokenize", body)
        if said is not None:
            again = {"model": model, "tokens": said["tokens"]}
            back = await self._plain(target, "/detokenize", again)
            if back is not None and back["prompt"].strip() != text:
                self.book.wrong.append(f"a text on {target.member.name} came back otherwise")

    async def pipelining(self, target: Target) -> None:
        """Two requests in one packet; some clients leave after the first answer."""
        leaves = self._dice.random() < 0.5
        bodies = [target.bodies.short(), target.bodies.long() if leaves else target.bodies.short()]
        entries, raw = [], b""
        for body in bodies:
            entry, numbered = self.book.begin(
                body, server=target.member.name, key="free", kind="pipelined"
            )
            entries.append(entry)
            raw += request_bytes(numbered, key=self._keys["free"], close=False)
        try:
            async with Wire(target.member.port) as wire:
                await wire.send(raw)
                self._took(entries[0], await wire.reply(0))
                if not leaves:
                    self._took(entries[1], await wire.reply(1))
        except _LOST as error:
            for entry in entries:
                if entry.ended_s is None:
                    self._lost(entry, error)

    async def half_closing(self, target: Target) -> None:
        """A client that has said all and closes its side still gets its answer (S11)."""
        await self.ask(target, "half-closed", target.bodies.short(), half_close=True)

    async def upgrading(self, target: Target) -> None:
        """An offer of HTTP/2 is ignored, the request is answered."""
        offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c",
                 "HTTP2-Settings": "AAMAAABkAAQAoAAA"}  # fmt: skip
        await self.ask(target, "upgrading", target.bodies.short(), more=offer)

    async def ask(
        self, target: Target, kind: str, body: Mapping[str, Any], *, key: str | None = None,
        secret: str | None = None, half_close: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> tuple[Entry, Reply | None]:  # fmt: skip
        """Ask and wait for the whole answer. The key is one of all, if none is given."""
        name = key or self._dice.choice(sorted(self._keys))
        entry, numbered = self.book.begin(body, server=target.member.name, key=name, kind=kind)
        try:
            async with Wire(target.member.port) as wire:
                bearer = secret or self._keys[name]
                await wire.send(request_bytes(numbered, key=bearer, more=more))
                if half_close:
                    wire.half_close()
                reply = await wire.reply()
        except _LOST as error:
            self._lost(entry, error)
            return entry, None
        self._took(entry, reply)
        return entry, reply

    async def _plain(self, target: Target, path: str, body: object) -> dict[str, Any] | None:
        began_s = time.monotonic()
        server = target.member.name
        raw = request_bytes(body, key=self._keys["free"], path=path)
        try:
            async with Wire(target.member.port) as wire:
                await wire.send(raw)
                reply = await wire.reply()
        except _LOST as error:
            self._judge_lost(f"{path} on {server}", server, began_s, time.monotonic(), error)
            return None
        if reply.whole and reply.status == 200:
            answer: dict[str, Any] = json.loads(reply.body)
            return answer
        if target.embedded and reply.status not in {429, 503} and reply.whole:
            self.book.wrong.append(f"{path} on {server}: {reply.status}")
        return None

    # Clients that do not behave.

    async def leaving(self, target: Target) -> None:
        """A stream whose client leaves somewhere."""
        body = target.bodies.long()
        name = self._dice.choice(sorted(self._keys))
        entry, numbered = self.book.begin(body, server=target.member.name, key=name, kind="left")
        try:
            async with Wire(target.member.port) as wire:
                await wire.send(request_bytes(numbered, key=self._keys[name]))
                if self._dice.random() < 0.2:
                    await asyncio.sleep(self._dice.uniform(0, 0.5))
                    return
                reply = await wire.until_events(self._dice.randint(1, 50))
        except _LOST as error:
            self._lost(entry, error)
        else:
            self._took(entry, reply, left=True)

    async def reading_slowly(self, target: Target) -> None:
        """A stream whose client takes a few bytes at a time."""
        body = {**target.bodies.long(), "n": 2, "logprobs": 5}
        entry, numbered = self.book.begin(
            body, server=target.member.name, key="free", kind="read slowly"
        )
        try:
            async with Wire(target.member.port, receive_bytes=2048) as wire:
                await wire.send(request_bytes(numbered, key=self._keys["free"]))
                slow_until_s = time.monotonic() + self._dice.uniform(2, 12)
                while time.monotonic() < slow_until_s and await wire.read(256):
                    await asyncio.sleep(0.05)
                reply = await wire.reply()
        except _LOST as error:
            self._lost(entry, error)
        else:
            self._took(entry, reply)

    async def mistaken(self, target: Target) -> None:
        """A request that must be refused."""
        model, key = target.bodies.short()["model"], self._keys["free"]
        await self._refused(target, bad_request(self._dice, model, key))

    async def compressed(self, target: Target) -> None:
        """A compressed body is refused for what it is (H14)."""
        body = gzip.compress(json.dumps(target.bodies.short()).encode())
        encoded = {"Content-Encoding": "gzip"}
        raw = request_bytes(body, key=self._keys["free"], more=encoded)
        await self._refused(target, BadRequest("compressed body", raw, (415,)))

    async def _refused(self, target: Target, bad: BadRequest) -> None:
        """A refusal has one of the statuses, the envelope and an id (H1)."""
        server, began_s = target.member.name, time.monotonic()
        what = f"{bad.name} on {server}"
        try:
            async with Wire(target.member.port) as wire:
                await wire.send(bad.raw)
                reply = await wire.reply()
        except _LOST as error:
            self._judge_lost(what, server, began_s, time.monotonic(), error)
            return
        if not reply.whole and self._met_kill(server, began_s, time.monotonic()):
            return
        if reply.status not in {*bad.statuses, 429} and not self._promised(reply, server, began_s):
            self.book.wrong.append(f"{what}: {reply.status} for {bad.statuses}")
        self._enveloped(reply, what)

    def _enveloped(self, reply: Reply, what: str) -> None:
        try:
            reply.error()
        except ValueError as error:
            self.book.wrong.append(f"{what}: {reply.status}, {error}")
        if "x-request-id" not in reply.headers:
            self.book.wrong.append(f"{what}: {reply.status} without x-request-id")

    async def hostile(self, target: Target) -> None:
        """Bytes that are no request: a 4xx in its envelope, or the end, and never an answer."""
        server = target.member.name
        name, raw = hostile_bytes(self._dice)
        wire = Wire(target.member.port)
        try:
            async with wire:
                if self._dice.random() < 0.2:
                    for at in range(0, min(len(raw), 100), 10):
                        await wire.send(raw[at : at + 10])
                        await asyncio.sleep(0.1)
                else:
                    await wire.send(raw)
                if self._dice.random() < 0.3:
                    wire.half_close()
                async with asyncio.timeout(self._dice.uniform(0.5, 5)):
                    while await wire.read():
                        pass
        except (*_LOST, TimeoutError):
            self.counts["hostile connections that ended, or that we left"] += 1
        what = f"{name} on {server}"
        for reply in wire.replies:
            if reply.whole and not 400 <= reply.status < 500:
                self.book.wrong.append(f"{what}: {reply.status}")
            elif reply.whole:
                self._enveloped(reply, what)

    # Judging.

    def _took(self, entry: Entry, reply: Reply, *, left: bool = False) -> None:
        self.book.took(entry, reply, left=left)
        server, ended_s = entry.server, entry.ended_s or 0.0
        if entry.ending == "cut" and not self._met_kill(server, entry.began_s, ended_s):
            self.book.wrong.append(f"{entry}: the answer broke off ({reply.status})")
        if entry.ending == "failed" and not self._from_upstream(entry):
            self.book.wrong.append(f"{entry}: failed midway: {entry.message}")
        limited = entry.status == 429 and entry.code == _LIMITS.get(entry.key)
        if entry.ending != "refused" or limited:
            return
        if entry.kind == "infill" and entry.status == 400 and "'suffix'" in entry.message:
            self.book.excused["suffixes that the model cannot honour"] += 1
        elif self._from_upstream(entry):
            self.book.excused[f"{entry.status} of a broken upstream"] += 1
        elif not self._promised(reply, server, entry.began_s):
            self.book.wrong.append(f"{entry}: {entry.status} {entry.code}: {entry.message}")

    def _promised(self, reply: Reply, server: str, began_s: float) -> bool:
        """Whether it is a 503 with ``Retry-After`` while or shortly after something was wrong."""
        promised = reply.status == 503 and "retry-after" in reply.headers and self._weather.met(
            server, began_s, time.monotonic(), "locked", "holding", "full", "stopped", "killed",
            after_s=15,
        )  # fmt: skip
        self.book.excused["503 in bad weather"] += promised
        return promised

    def _from_upstream(self, entry: Entry) -> bool:
        embedded = any(t.embedded for t in self._targets if t.member.name == entry.server)
        return not embedded and "server" in entry.message.lower() and entry.status != 429 and (
            "of this model" in entry.message
        )  # fmt: skip

    def _lost(self, entry: Entry, error: BaseException) -> None:
        self.book.broke(entry)
        self._judge_lost(str(entry), entry.server, entry.began_s, entry.ended_s or 0.0, error)

    def _judge_lost(
        self, what: str, server: str, began_s: float, ended_s: float, error: BaseException
    ) -> None:
        if self._met_kill(server, began_s, ended_s):
            self.book.excused["connections that a kill broke"] += 1
            return
        kind = f"no word for {LIMIT_S:.0f} s" if isinstance(error, TimeoutError) else repr(error)
        self.book.wrong.append(f"{what}: {kind}")

    def _met_kill(self, server: str, began_s: float, ended_s: float) -> bool:
        return self._weather.met(server, began_s, ended_s, "killed", "ending")
