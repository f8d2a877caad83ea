"""Values that tests of the ledger share."""

from __future__ import annotations

from afterword.core.account import UsageRecord

NOW = 1_795_600_000.0
"""2026-11-25 in UTC."""


class Hand:
    """A clock that tests set."""

    def __init__(self, now_s: float = NOW) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def record(
    request_id: str, *, key_id: str | None = "k", tokens: int = 10, started_at: float = NOW
) -> UsageRecord:
    return UsageRecord(
        id=request_id, key_id=key_id, model="toy", user=None, stream=False, status="answered",
        prompt_tokens=tokens - tokens // 2, cached_tokens=0, completion_tokens=tokens // 2,
        started_at=started_at, first_token_ms=1.5, duration_ms=20.0,
    )  # fmt: skip
