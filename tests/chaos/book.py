"""What clients asked for and what they got, and the laws that the ledger has to keep with it.

Each request has a number, which it sends as its ``user``, so that its record can be found.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from afterword.core.account import UsageRecord
from afterword.core.limits import Limits
from chaos.wire import Reply

Ending: TypeAlias = Literal["open", "whole", "refused", "failed", "cut"]
"""``open``: the client left or still waits. ``cut``: the server's end broke the connection."""

_SEARCH_TOKENS = 2 * Limits().infill_tokens
"""More than a search takes for a prompt: it draws as many, and reads ends of the suffix."""


class Entry(msgspec.Struct, kw_only=True):
    """One request. ``worst_tokens`` is the most that it may be charged."""

    number: int
    server: str
    key: str
    kind: str
    choices: int
    worst_tokens: int
    began_s: float
    ended_s: float | None = None
    ending: Ending = "open"
    status: int = 0
    code: str | None = None
    message: str = ""
    id: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    least_tokens: int = 0
    """What an answer that broke off has shown at least."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __str__(self) -> str:
        return f"{self.kind} no. {self.number} of {self.key} on {self.server}"


class Book:
    """All requests, in order, and answers that no answer should be (``wrong``)."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.wrong: list[str] = []
        self.excused: Counter[str] = Counter()

    def begin(
        self, body: Mapping[str, Any], *, server: str, key: str, kind: str
    ) -> tuple[Entry, dict[str, Any]]:
        """Enter a request that is about to be sent. Returns its body with its number."""
        number = len(self.entries)
        entry = Entry(
            number=number, server=server, key=key, kind=kind, choices=choices_of(body),
            worst_tokens=worst_tokens(body), began_s=time.monotonic(),
        )  # fmt: skip
        self.entries.append(entry)
        return entry, {**body, "user": str(number)}

    def took(self, entry: Entry, reply: Reply, *, left: bool = False) -> None:
        """Enter what came of an answer. ``left``: the client did not wait for its end."""
        entry.ended_s = time.monotonic()
        entry.status = reply.status
        try:
            if reply.status != 200:
                self._refused(entry, reply)
            elif reply.streamed:
                self._streamed(entry, reply)
            else:
                self._answered(entry, reply)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.wrong.append(f"{entry}: cannot be read ({type(error).__name__}: {error})")
        if left and entry.ending == "cut":
            entry.ending = "open"

    def broke(self, entry: Entry) -> None:
        """Enter that the connection failed before an answer."""
        entry.ended_s = time.monotonic()
        entry.ending = "cut"

    def _refused(self, entry: Entry, reply: Reply) -> None:
        entry.ending = "refused" if reply.whole else "cut"
        if reply.whole:
            error = reply.error()
            entry.code, entry.message = error["code"], error["message"]

    def _answered(self, entry: Entry, reply: Reply) -> None:
        if not reply.whole:
            entry.ending = "cut"
            return
        answer = json.loads(reply.body)
        entry.id = answer["id"]
        self._whole(entry, answer["usage"], [one["finish_reason"] for one in answer["choices"]])

    def _streamed(self, entry: Entry, reply: Reply) -> None:
        events = reply.events
        done = bool(events) and events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in (events[:-1] if done else events)]
        if chunks and "error" in chunks[-1]:
            entry.ending = "failed"
            error = chunks.pop()["error"]
            entry.code, entry.message = error["code"], error["message"]
        elif not done:
            entry.ending = "cut"
        if chunks:
            entry.id = chunks[0]["id"]
        # The echo and the last piece of each choice may be chunks without a token.
        entry.least_tokens = max(0, sum(map(_is_text, chunks)) - 2 * entry.choices)
        if entry.ending == "open":
            reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
            self._whole(entry, chunks[-1]["usage"], [one for one in reasons if one is not None])

    def _whole(self, entry: Entry, usage: Mapping[str, Any], reasons: Sequence[str]) -> None:
        entry.ending = "whole"
        entry.prompt_tokens = usage["prompt_tokens"]
        entry.completion_tokens = usage["completion_tokens"]
        if len(reasons) != entry.choices or not set(reasons) <= {"stop", "length"}:
            self.wrong.append(f"{entry}: {entry.choices} choices ended as {reasons}")
        if not 0 <= entry.tokens <= entry.worst_tokens or usage["total_tokens"] != entry.tokens:
            self.wrong.append(f"{entry}: usage {dict(usage)} of at most {entry.worst_tokens}")


def choices_of(body: Mapping[str, Any]) -> int:
    return len(_prompts(body)) * (body.get("n") or 1)


def worst_tokens(body: Mapping[str, Any]) -> int:
    """The most that a body may cost: a token has at least a byte, and a few are special."""
    prompts = _prompts(body)
    inputs = sum(8 + len(p.encode() if isinstance(p, str) else p) for p in prompts)
    inputs += len(prompts) * len((body.get("suffix") or "").encode())
    each = max(body.get("n") or 1, body.get("best_of") or 1)
    made: int = len(prompts) * each * body["max_tokens"]
    # The small model has no tokens for infills, and searches for a middle.
    searched = len(prompts) * _SEARCH_TOKENS if body.get("suffix") else 0
    return inputs + made + searched


def _prompts(body: Mapping[str, Any]) -> Sequence[Any]:
    prompt = body["prompt"]
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _is_text(chunk: Mapping[str, Any]) -> bool:
    return any(choice["text"] for choice in chunk["choices"])


class KeySum(msgspec.Struct, kw_only=True):
    """A key's books: what its clients received, what is recorded, what may be on top."""

    requests: int = 0
    whole: int = 0
    received_tokens: int = 0
    recorded: int = 0
    recorded_tokens: int = 0
    open_tokens: int = 0
    """The worst cases of requests whose end their client did not see."""


def compare(
    entries: Sequence[Entry], records: Sequence[UsageRecord], names: Mapping[str, str]
) -> tuple[dict[str, KeySum], list[str]]:
    """Returns the sums by name of key, and every disagreement. ``names`` are by key's id."""
    wrong: list[str] = []
    sums = {name: KeySum() for name in names.values()}
    found: dict[int, UsageRecord] = {}
    for record in records:
        if record.id.startswith("tok-") and record.prompt_tokens == record.completion_tokens == 0:
            # Tokenising takes no tokens, and its requests have no ``user``.
            continue
        number = int(record.user) if record.user and record.user.isdigit() else -1
        if not 0 <= number < len(entries) or number in found:
            wrong.append(f"record {record.id}: no request, or a second record of no. {number}")
            continue
        found[number] = record
    for entry in entries:
        one = found.get(entry.number)
        wrong += _disagreements(entry, one)
        if one is not None and names.get(one.key_id or "") != entry.key:
            wrong.append(f"{entry}: recorded for another key")
        _add(sums[entry.key], entry, one)
    for name, total in sums.items():
        most = total.received_tokens + total.open_tokens
        if not total.received_tokens <= total.recorded_tokens <= most:
            wrong.append(f"key {name}: {total.recorded_tokens} tokens recorded, "
                         f"{total.received_tokens} received, at most {most} possible")  # fmt: skip
    return sums, wrong


def _disagreements(entry: Entry, record: UsageRecord | None) -> Iterator[str]:
    if record is None:
        if entry.ending == "whole" or entry.id:
            yield f"{entry}: answered, not recorded"
        return
    tokens = record.prompt_tokens, record.completion_tokens
    told = entry.prompt_tokens, entry.completion_tokens
    if entry.ending == "whole":
        if (record.status, record.id, *tokens) != ("answered", entry.id, *told):
            yield f"{entry}: told {told}, recorded {tokens} as {record.status}"
    elif entry.ending == "refused" and entry.status < 500:
        yield f"{entry}: refused with {entry.status}, and recorded as {record.status}"
    elif min(tokens) < 0 or sum(tokens) > entry.worst_tokens:
        yield f"{entry}: recorded {tokens}, at most {entry.worst_tokens} were possible"
    elif record.status != "lost" and record.completion_tokens < entry.least_tokens:
        yield f"{entry}: at least {entry.least_tokens} tokens came, recorded {tokens[1]}"


def _add(total: KeySum, entry: Entry, record: UsageRecord | None) -> None:
    total.requests += 1
    if entry.ending == "whole":
        total.whole += 1
        total.received_tokens += entry.tokens
    elif entry.ending != "refused" or entry.status >= 500:
        total.open_tokens += entry.worst_tokens
    if record is not None:
        total.recorded += 1
        total.recorded_tokens += record.prompt_tokens + record.completion_tokens
