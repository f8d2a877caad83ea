"""Puts tests/ and scripts/ on the path, of which benchmarks import what they share with them."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(_ROOT / folder) for folder in ("tests", "scripts")]
