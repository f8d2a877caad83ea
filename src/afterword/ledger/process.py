"""How the ledger names a process."""

from __future__ import annotations

import msgspec

KEYLESS = "k"
"""Ids of processes that began without a database begin with this.

Their journals belong to the database file in the same folder. The journal of any other process
may belong to a database elsewhere.
"""


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process as its journal and the database name it. ``id`` is used once."""

    id: str
    host: str
    pid: int
