"""Breaks servers for a while and checks what is promised: ``make chaos``.

Three servers share a ledger: ``victim`` and ``steady`` with the embedded model, and ``gateway`` in
front of two upstreams that misbehave. The victim is killed every minute. Exit status 1 if a law
was broken. Linux only.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from chaos import verdict
from chaos.storm import StormPlan, storm
from standins import services
from support.embedded import embedded_file


def main() -> int:
    """Run, print the table, write the report. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats the choices of a run")
    parser.add_argument("--postgres", action="store_true", help="the ledger is in PostgreSQL")
    parser.add_argument("--model", type=Path, help="a GGUF file instead of the embedded model")
    parser.add_argument("--report", type=Path, default=Path("chaos.json"))
    parser.add_argument("--keep", type=Path, help="a new folder for logs and ledger, which stay")
    given = parser.parse_args()
    if sys.platform != "linux":
        parser.error("it looks at processes in /proc, which only Linux has")
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    with ExitStack() as opened:
        if given.keep is None:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        else:
            folder = given.keep
            folder.mkdir(parents=True)
        database = None
        if given.postgres:
            server = opened.enter_context(services.postgres())
            server.sql("CREATE DATABASE chaos")
            database = server.url("chaos")
        report = storm(
            StormPlan(seed=seed, seconds=given.minutes * 60, folder=folder, database=database,
                      model=given.model or embedded_file())
        )  # fmt: skip
    given.report.write_bytes(verdict.as_json(report))
    print("\n".join(report.table()))
    return 1 if report.reasons else 0


if __name__ == "__main__":
    sys.exit(main())
