"""Which build of ggml's CPU library a processor runs: the choice, as a table of features."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

BASELINE = "x86-64"
_V3 = frozenset({"avx", "avx2", "bmi2", "f16c", "fma", "popcnt", "sse4_2"})
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
NEEDS: Mapping[str, frozenset[str]] = {
    "x86-64-v4": _V4,
    "x86-64-v3": _V3,
    BASELINE: frozenset(),
}
"""What each build needs, best first, by the names of Linux."""


class VariantError(ImportError):
    """A build was asked for that is not there, or that this processor cannot run."""


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the processor's features; none if the system does not tell.

    The kernel leaves out what it does not save between processes, so no other check is needed.
    """
    try:
        found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def choose(built: Collection[str], has: frozenset[str], wanted: str | None = None) -> str:
    """Returns the best of the ``built`` variants for a processor that ``has`` these features.

    ``wanted`` names another one. Raises ``VariantError`` if it is not there, or if the processor
    cannot run it.
    """
    runnable = [name for name, needs in NEEDS.items() if name in built and needs <= has]
    if wanted is None:
        return runnable[0]
    if wanted not in runnable:
        raise VariantError(
            f"AFTERWORD_NATIVE_VARIANT={wanted}: this processor runs {', '.join(runnable)}"
        )
    return wanted
