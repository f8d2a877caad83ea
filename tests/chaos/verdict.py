"""What was promised and not kept: in logs, files, figures and the ledger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa

from afterword.core.account import UsageQuery
from afterword.ledger.audit import check
from afterword.ledger.database import reading
from afterword.ledger.keys import KeyStore
from afterword.ledger.store import UsageStore
from afterword.ledger.tables import processes, reservations, spending
from chaos.bodies import MARK
from chaos.book import Book, KeySum, compare
from chaos.samples import Growth, Sample

_MOST_SHOWN = 4
"""Reasons of one kind that are shown; the report has their number."""
_MOST_RECORDS = 10**8
_FAULTS = re.compile(
    rb"Traceback|Exception ignored|never retrieved|was never awaited|Segmentation fault"
    rb"|Fatal Python error|GGML_ASSERT|--- Logging error"
)

_PARTICULAR = re.compile(r"\d+|of \w+ on \w+|on (victim|steady|gateway)")


class Report(msgspec.Struct, kw_only=True):
    """What ``chaos.json`` has. Empty ``reasons`` mean that every law was kept."""

    seed: int
    minutes: float
    database: str
    disk: str
    reasons: Sequence[str]
    requests: Mapping[str, int]
    clients: Mapping[str, int]
    troubles: Mapping[str, int]
    misdeeds: Mapping[str, int]
    excused: Mapping[str, int]
    keys: Mapping[str, KeySum]
    growths: Sequence[Growth]
    health_ms: Mapping[str, Sequence[float]]
    samples: Sequence[Sample] = ()

    def table(self) -> Iterator[str]:
        """Yields the lines that are printed."""
        yield f"seed {self.seed}, {self.minutes:g} minutes, {self.database}, {self.disk}"
        for title, counts in (
            ("requests", self.requests), ("clients", self.clients), ("troubles", self.troubles),
            ("upstreams", self.misdeeds), ("excused", self.excused),
        ):  # fmt: skip
            yield f"{title}: " + ", ".join(f"{v:,} {k}" for k, v in sorted(counts.items()) if v)
        yield ""
        yield "| key | requests | whole | tokens received | recorded | possible on top |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for name, one in self.keys.items():
            yield (f"| {name} | {one.requests:,} | {one.whole:,} | {one.received_tokens:,} "
                   f"| {one.recorded_tokens:,} | {one.open_tokens:,} |")  # fmt: skip
        yield ""
        yield "| server | figure | over | first | last | flat |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for g in self.growths:
            flat = ("yes" if g.flat else "NO") if g.judged else "(too short)"
            yield f"| {g.server} | {g.what} | {g.over} | {g.first:.1f} | {g.last:.1f} | {flat} |"
        for server, (middle, high, most) in self.health_ms.items():
            yield f"/health of {server}: median {middle:.0f}, 99 % {high:.0f}, most {most:.0f} ms"
        yield ""
        yield from (f"WRONG: {reason}" for reason in self.reasons)
        yield f"{len(self.reasons)} laws broken" if self.reasons else "every law was kept"


def of_logs(logs: Sequence[Path], keys: Mapping[str, str]) -> Iterator[str]:
    """Yields what no log may have: tracebacks, keys, prompts."""
    for log in logs:
        raw = log.read_bytes()
        for fault in sorted(set(_FAULTS.findall(raw))):
            at = raw.index(fault)
            lines = raw[raw.rfind(b"\n", 0, at) + 1 :].splitlines()[:12]
            yield f"{log.name}: {b' / '.join(lines).decode(errors='replace')[:900]}"
        yield from _secrets_in(log.name, raw, keys)


def of_files(folder: Path, keys: Mapping[str, str]) -> Iterator[str]:
    """Yields what no file of the ledger may have, and journals that stayed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield from _secrets_in(path.name, path.read_bytes(), keys)
            if path.suffix in {".journal", ".new"}:
                yield f"{path.name} stayed after the servers had stopped"


def _secrets_in(name: str, raw: bytes, keys: Mapping[str, str]) -> Iterator[str]:
    if MARK.encode() in raw:
        yield f"{name} has a prompt or a completion"
    for key, secret in keys.items():
        if secret[12:].encode() in raw:
            yield f"{name} has the key {key}"


def of_ledger(
    database: sa.Engine, store: KeyStore, book: Book
) -> tuple[dict[str, KeySum], list[str]]:
    """Compares the ledger with what clients received, and with itself."""
    views = store.all()
    names = {view.id: view.terms.name for view in views}
    records = UsageStore(database).requests(UsageQuery(), most=_MOST_RECORDS)
    sums, wrong = compare(book.entries, records, names)
    wrong += [f"db check: {one}" for one in check(database)]
    budgets = {view.id: view.terms.budget_tokens for view in views}
    with reading(database) as connection:
        for table in (reservations, processes):
            left = connection.scalar(sa.select(sa.func.count()).select_from(table))
            if left:
                wrong.append(f"{left} {table.name} stayed after the servers had stopped")
        for key_id, period, used in connection.execute(
            sa.select(spending.c.key_id, spending.c.period, spending.c.used)
        ):
            budget = budgets.get(key_id)
            if budget is not None and len(period) == len("2026-11-28") and used > budget:
                wrong.append(f"{names[key_id]} spent {used} of {budget} tokens in {period}")
    return sums, wrong


def shortened(reasons: Sequence[str]) -> list[str]:
    """Returns reasons, of each kind only a few; a kind is a reason without its numbers."""
    seen: Counter[str] = Counter()
    kept = []
    for reason in reasons:
        kind = _PARTICULAR.sub("#", reason)[:100]
        seen[kind] += 1
        if seen[kind] <= _MOST_SHOWN:
            kept.append(reason)
    return kept + [f"… and {n - _MOST_SHOWN} more: {kind}" for kind, n in seen.items()
                   if n > _MOST_SHOWN]  # fmt: skip


def quantiles(values: Sequence[float]) -> Sequence[float]:
    """Returns the median, the 99th of a hundred and the largest."""
    ordered = sorted(values)
    return [ordered[min(int(len(ordered) * q), len(ordered) - 1)] for q in (0.5, 0.99, 1.0)]


def as_json(report: Report) -> bytes:
    """Returns what ``chaos.json`` has."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1)
