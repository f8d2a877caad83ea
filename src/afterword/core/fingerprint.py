"""Fingerprints of what answers depend on (D3)."""

from __future__ import annotations

import hashlib


def fingerprint(*parts: object) -> str:
    """Returns ``fp_`` and ten hex digits of a digest of all parts."""
    return f"fp_{hashlib.sha256('|'.join(map(str, parts)).encode()).hexdigest()[:10]}"
