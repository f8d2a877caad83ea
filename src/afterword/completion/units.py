"""What is missing between two texts: whole lines, whole sentences, or a part of one (F3)."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["lines", "sentences", "part"]

_ENDS = (".", "!", "?", "…", "。", "！", "？")  # noqa: RUF001 - of other scripts
_QUOTES = " \t\n\"'()[]“”‘’«»「」¿¡"  # noqa: RUF001 - as people write them
"""What may stand behind the end of a sentence, and before the next one."""
_WORD = re.compile(r"[^\W\d_]{2}")
_INITIAL = re.compile(r"\b[A-Z]\.$")


def missing_unit(before: str, suffix: str) -> Unit:
    """Returns what is missing between the end of a prompt and a suffix."""
    if before.endswith("\n") and suffix.startswith("\n"):
        return "lines"
    return "sentences" if begins_sentence(suffix) and ends_sentence(before) else "part"


def begins_sentence(text: str) -> bool:
    """Whether a text begins as a sentence does: with a digit, or a letter that is not small."""
    first = text.lstrip(_QUOTES)[:1]
    # Scripts without cases have letters that are neither.
    return first.isdigit() or (first.isalpha() and not first.islower())


def ends_sentence(text: str) -> bool:
    """Whether a text has a word, and ends where a sentence ends: not behind an initial."""
    bare = text.rstrip(_QUOTES)
    return bare.endswith(_ENDS) and _WORD.search(bare) is not None and not _INITIAL.search(bare)
