"""One run: servers, clients and troubles together for a while, then the verdict."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa

from afterword.core.account import KeyTerms
from afterword.ledger.database import open_database
from afterword.ledger.keys import KeyStore
from chaos import verdict
from chaos.bodies import Bodies
from chaos.book import Book, KeySum
from chaos.clients import Clients, Target
from chaos.passing_keys import PassingKeys
from chaos.samples import Sample, growths, look
from chaos.servers import Member, StartFailed
from chaos.troubles import Troubles, small_disk
from chaos.upstreams import MODEL, Misbehaving
from chaos.verdict import Report
from chaos.weather import Weather
from chaos.wire import Wire, request_bytes

_KEYS = (
    KeyTerms(name="free"),
    KeyTerms(name="limited", rpm=120, tpm=60_000),
    KeyTerms(name="few", concurrent=2),
    KeyTerms(name="small", budget_tokens=4_000, budget_per="day"),
    KeyTerms(name="large", budget_tokens=10**7, budget_per="day"),
)
_SLOW_HEALTH_MS = 10_000.0
_CALM_S = 12.0
"""The longest time that a server needs after a trouble until all is as before."""


class StormPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how hard. Gaps between troubles of a kind are means, in seconds.

    ``least_requests`` prolong a run that is too short for them; a run lasts until its first kill.
    A trouble lasts at most ``longest_s``.
    """

    seed: int
    seconds: float
    model: Path
    folder: Path
    database: str | None = None
    kill_s: float = 60.0
    halt_s: float = 60.0
    lock_s: float = 60.0
    fill_s: float = 75.0
    jump_s: float = 45.0
    key_s: float = 15.0
    sample_s: float = 5.0
    least_requests: int = 0
    longest_s: float = 10.0
    calm_s: float = _CALM_S
    crowd: int = 1


class Storm:
    """A run of a plan."""

    def __init__(self, plan: StormPlan, disk: Path, *, small: bool) -> None:
        self._plan = plan
        self._dice = random.Random(plan.seed)
        self._weather = Weather()
        self._book = Book()
        self._samples: list[Sample] = []
        self._over = asyncio.Event()
        self._reasons: list[str] = []
        self._data = disk / "data"
        self._database: sa.Engine = open_database(self._data, plan.database)
        self._store = KeyStore(self._database, clock=time.time, entropy=os.urandom)
        self._keys = {terms.name: self._store.create(terms).secret for terms in _KEYS}
        self._upstreams = [Misbehaving(self._dice, good=good) for good in (0.6, 0.9)]
        self._small_disk = disk if small else None

    async def run(self) -> Report:
        async with AsyncExitStack() as opened:
            for upstream in self._upstreams:
                await opened.enter_async_context(upstream)
            members = self._members()
            opened.push_async_callback(self._end_all, members)
            self._troubles = Troubles(
                members, self._database, self._small_disk, self._weather, self._dice,
                longest_s=self._plan.longest_s,
            )  # fmt: skip
            for member in members:
                await member.start()
            self._began_s = time.monotonic()
            targets = self._targets(members)
            clients = Clients(targets, self._keys, self._book, self._weather, self._dice)
            self._passing = PassingKeys(self._store, targets, clients, self._weather)
            # Buffers are taken as batches grow. Once all are taken, what grows is a leak.
            for target in targets:
                if target.embedded:
                    await clients.ask(target, "widest", target.bodies.widest(), key="free")
            await self._blow(members, clients)
            await self._calm_down(members)
            return self._report(members, clients)

    def _members(self) -> list[Member]:
        plan = self._plan
        common = ["--data-dir", str(self._data), "--read-timeout-s", "5"]
        if plan.database is not None:
            common += ["--database", plan.database]
        embedded = ["--model", f"small={plan.model}", "--max-sequences", "4", "--threads", "1"]
        # Small caches are soon full, and growth after that is a leak.
        embedded += ["--ctx", "1024", "--kv-mib", "96", "--score-cache-mib", "4", *common]
        addresses = [f"--model={MODEL}={upstream.address}" for upstream in self._upstreams]
        # Short, so that a silent upstream is met often.
        patience = ["--upstream-silence-s", "5", "--upstream-first-token-s", "20",
                    "--upstream-connect-s", "2", "--upstream-probe-s", "1"]  # fmt: skip
        return [
            Member(name, flags, plan.folder, self._weather)
            for name, flags in (
                ("victim", embedded), ("steady", embedded),
                ("gateway", [*addresses, *patience, *common]),
            )
        ]  # fmt: skip

    def _targets(self, members: Sequence[Member]) -> list[Target]:
        return [
            Target(member, Bodies(model, self._dice, embedded=own), own)
            for member, model, own in zip(
                members, ("small", "small", MODEL), (True, True, False), strict=True
            )
        ]

    async def _blow(self, members: Sequence[Member], clients: Clients) -> None:
        """Let clients and troubles go on for the time of the plan."""
        plan, troubles = self._plan, self._troubles
        async with asyncio.TaskGroup() as group:
            for act in clients.acts(plan.crowd):
                group.create_task(clients.go_on(act))
            for trouble in (
                self._again(plan.kill_s, partial(self._kill, members), spread=0),
                self._again(plan.halt_s, troubles.halt),
                self._again(plan.lock_s, troubles.lock),
                self._again(plan.fill_s, troubles.fill),
                self._again(plan.jump_s, troubles.jump),
                self._again(plan.key_s, self._passing.pass_by),
                self._again(plan.sample_s, partial(self._look, members), spread=0),
            ):
                group.create_task(trouble)
            await asyncio.sleep(plan.seconds)
            while not self._enough():
                await asyncio.sleep(0.1)
            clients.over = True
            self._over.set()

    def _enough(self) -> bool:
        asked = len(self._book.entries) >= self._plan.least_requests
        return asked and self._troubles.counts["kill -9"] > 0

    async def _again(
        self, mean_s: float, act: Callable[[], Awaitable[None]], *, spread: float = 0.5
    ) -> None:
        """Act once in a while until the run is over. What was begun is finished."""
        while not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._dice.uniform(1 - spread, 1 + spread) * mean_s):
                    await self._over.wait()
                return
            await act()

    async def _kill(self, members: Sequence[Member]) -> None:
        """Kill the victim, and in the first sixth of the time the gateway, too."""
        victim, _, gateway = members
        young = time.monotonic() - self._began_s < self._plan.seconds / 6
        for member in [victim, gateway] if young else [victim]:
            with self._weather.spell("killed", member.name):
                await self._troubles.kill(member)
                await self._started(member)

    async def _look(self, members: Sequence[Member]) -> None:
        for member in members:
            if member.running and not self._met(member, "killed"):
                sample = look(member, self._began_s)
                if sample is not None:
                    sample.health_ms = await self._health_ms(member)
                    self._samples.append(sample)

    def _met(self, member: Member, *troubles: str) -> bool:
        now_s = time.monotonic()
        return self._weather.met(member.name, now_s, now_s, *troubles)  # type: ignore[arg-type]

    async def _health_ms(self, member: Member) -> float | None:
        """Returns how long ``/health`` takes; None if the server was made not to answer."""
        began_s = time.monotonic()
        raw = request_bytes(b"", method="GET", path="/health")
        status = 0
        try:
            async with Wire(member.port) as wire:
                await wire.send(raw)
                status = (await wire.reply()).status
        except OSError as error:
            fault = repr(error)
        else:
            fault = f"status {status}"
        ended_s = time.monotonic()
        if self._weather.met(member.name, began_s, ended_s, "killed", "stopped"):
            return None
        taken_ms = (ended_s - began_s) * 1000
        # The gateway is red while none of its upstreams is up.
        if status != 200 and not (member.name == "gateway" and status == 503):
            self._reasons.append(f"/health of {member.name}: {fault}")
        if taken_ms > _SLOW_HEALTH_MS:
            self._reasons.append(f"/health of {member.name} took {taken_ms:.0f} ms")
        return taken_ms

    async def _calm_down(self, members: Sequence[Member]) -> None:
        """Let servers come to themselves, stop them, and let one look for what is left."""
        await asyncio.sleep(self._plan.calm_s)
        for member in members:
            member.clock.set(0.0)
        with self._weather.spell("ending"):
            for member in members:
                if member.running or await self._started(member):
                    status = await member.stop()
                    if status:
                        self._reasons.append(f"{member.name} stopped with status {status}")
            if await self._started(members[0]):
                await members[0].stop()

    async def _started(self, member: Member) -> bool:
        """Start a server. Returns whether it came up; else the reason is a law broken."""
        try:
            await member.start()
        except StartFailed as error:
            self._reasons.append(str(error))
            return False
        return True

    async def _end_all(self, members: Sequence[Member]) -> None:
        for member in members:
            if member.running:
                await member.kill()
        self._database.dispose()

    def _report(self, members: Sequence[Member], clients: Clients) -> Report:
        plan, book = self._plan, self._book
        logs = [log for member in members for log in member.logs]
        sums, unequal = verdict.of_ledger(self._database, self._store, book)
        grown = list(growths(self._samples, plan.seconds))
        steep = [f"{g.server}: {g.what} grew from {g.first:.1f} to {g.last:.1f} over {g.over}"
                 for g in grown if g.judged and not g.flat]  # fmt: skip
        secrets = {**self._keys, **self._passing.secrets}
        reasons = [
            *self._reasons, *book.wrong, *unequal, *steep,
            *verdict.of_logs(logs, secrets), *verdict.of_files(self._data, secrets),
        ]  # fmt: skip
        health = {
            member.name: [s.health_ms for s in self._samples
                          if s.server == member.name and s.health_ms is not None]
            for member in members
        }  # fmt: skip
        misdeeds = sum((Counter(u.misdeeds) for u in self._upstreams), Counter[str]())
        return Report(
            seed=plan.seed, minutes=plan.seconds / 60,
            database="PostgreSQL" if plan.database else "SQLite",
            disk="full: a small file system" if self._small_disk else "full: RLIMIT_FSIZE",
            reasons=verdict.shortened(reasons), requests=Counter(e.ending for e in book.entries),
            clients=clients.counts, troubles=self._troubles.counts, misdeeds=misdeeds,
            excused=book.excused, keys=_together(sums), growths=grown,
            health_ms={name: verdict.quantiles(ms) for name, ms in health.items() if ms},
            samples=self._samples,
        )  # fmt: skip


def _together(sums: Mapping[str, KeySum]) -> dict[str, KeySum]:
    """Returns the sums with those of all passing keys as one."""
    shown = {name: one for name, one in sums.items() if not name.startswith("passing-")}
    passing = [one for name, one in sums.items() if name.startswith("passing-")]
    if passing:
        fields = KeySum.__struct_fields__
        shown["passing"] = KeySum(**{f: sum(getattr(one, f) for one in passing) for f in fields})
    return shown


def storm(plan: StormPlan) -> Report:
    """Run a plan in its folder. Returns what happened."""
    with ExitStack() as opened:
        disk = plan.folder / "disk"
        small = opened.enter_context(small_disk(disk))
        return asyncio.run(Storm(plan, disk, small=small).run())
