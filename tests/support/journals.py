"""Journals of processes that were killed."""

from __future__ import annotations

import os

from afterword.ledger.journal import Journal


def die(journal: Journal) -> None:
    """Do what the kernel does for a killed process: close descriptors, keep files."""
    for segment in journal._segments:
        os.close(segment.descriptor)
    while journal._leaving:
        os.close(journal._leaving.popleft())
