"""What a server takes of the machine over time, and whether that stays flat."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from chaos.servers import Member

GROWTH = 0.05
"""The most that memory, files and threads may grow between the ends of the time compared."""
SHORTEST_S = 600.0
"""Over less time nothing is said: caches are still filling."""
_SLACK = {"anonymous_mib": 4.0, "files": 2.0, "threads": 1.0}
"""Growth by less is noise, whatever the share."""


class Sample(msgspec.Struct, kw_only=True):
    """One look at one process. ``health_ms`` is None if the server was made not to answer.

    ``anonymous_mib`` is memory of its own. Pages of files come and go as the machine likes.
    """

    server: str
    start: int
    at_s: float
    age_s: float
    anonymous_mib: float
    files: int
    threads: int
    health_ms: float | None = None


class Growth(msgspec.Struct, kw_only=True):
    """A figure at the beginning and at the end of some time."""

    server: str
    what: str
    over: str
    first: float
    last: float
    judged: bool

    @property
    def flat(self) -> bool:
        slack = max(GROWTH * self.first, _SLACK[self.what.rpartition(" ")[2]])
        return self.last <= self.first + slack


def look(member: Member, began_s: float) -> Sample | None:
    """Returns what a process takes now; None if it is gone."""
    process = Path(f"/proc/{member.pid}")
    try:
        rollup = (process / "smaps_rollup").read_text()
        status = (process / "status").read_text()
        files = len(list((process / "fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "Pss_Anon:" not in rollup:
        return None
    now_s = time.monotonic()
    return Sample(
        server=member.name, start=member.starts, at_s=now_s - began_s,
        age_s=now_s - member.ready_s, anonymous_mib=_number(rollup, "Pss_Anon:") / 1024,
        files=files, threads=_number(status, "Threads:"),
    )  # fmt: skip


def _number(text: str, name: str) -> int:
    return int(text.split(name, 1)[1].split(None, 1)[0])


def growths(samples: Sequence[Sample], whole_s: float) -> Iterator[Growth]:
    """Compares the last two thirds of the time, within a process and from process to process."""
    for server in sorted({one.server for one in samples}):
        own = [one for one in samples if one.server == server and one.at_s >= whole_s / 3]
        starts = sorted({one.start for one in own})
        if not starts:
            continue
        last = [one for one in own if one.start == starts[-1]]
        yield from _within(server, last, whole_s)
        if len(starts) > 1:
            yield from _between(server, own, starts)


def _within(server: str, samples: Sequence[Sample], whole_s: float) -> Iterator[Growth]:
    """Compares the first and the last quarter of what one process lived through."""
    quarter = max(len(samples) // 4, 1)
    ends = samples[:quarter], samples[-quarter:]
    lived_s = samples[-1].at_s - samples[0].at_s
    # A process that was started within the time has not filled its caches at the beginning.
    judged = lived_s >= SHORTEST_S and lived_s >= 0.9 * whole_s * 2 / 3
    for what, figure in _FIGURES.items():
        first, last = (figure(end) for end in ends)
        over = f"{lived_s / 60:.1f} min of one process"
        yield Growth(server=server, what=what, over=over, first=first, last=last, judged=judged)


def _between(server: str, samples: Sequence[Sample], starts: Sequence[int]) -> Iterator[Growth]:
    """Compares processes at the same age: the youngest that all but a few have reached."""
    ages = sorted(max(s.age_s for s in samples if s.start == start) for start in starts)
    age_s = ages[len(ages) // 4]
    at_age = [
        min((s for s in samples if s.start == start), key=lambda s: abs(s.age_s - age_s))
        for start in starts
    ]
    third = max(len(at_age) // 3, 1)
    for what, figure in _FIGURES.items():
        first, last = figure(at_age[:third]), figure(at_age[-third:])
        over = f"{len(starts)} processes at {age_s:.0f} s"
        yield Growth(server=server, what=what, over=over, first=first, last=last,
                     judged=len(starts) >= 12)  # fmt: skip


def _low(values: Sequence[float]) -> float:
    """Returns a low value: connections come and go, what leaks stays."""
    return sorted(values)[len(values) // 10]


_FIGURES: dict[str, Callable[[Sequence[Sample]], float]] = {
    "anonymous_mib": lambda samples: statistics.median(one.anonymous_mib for one in samples),
    "files": lambda samples: _low([one.files for one in samples]),
    "threads": lambda samples: _low([one.threads for one in samples]),
}
