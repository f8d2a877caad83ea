"""Puts tests/ on the path: benchmarks import what they share with the tests (tests/support)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
