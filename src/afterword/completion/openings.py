"""What the candidates of an infill continue: the prompt, alone or behind the suffix (F3).

A model draws better middles if it has seen what comes after them. So some candidates continue the
prompt as it stands behind the suffix. Where whole lines are missing, some begin with the
indentation of the line before or after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from afterword.completion.encoding import encode
from afterword.completion.prompt_text import VocabView, text_of_ids
from afterword.completion.units import missing_unit
from afterword.core.protocols import Tokenizer

SHOWN_TOKENS = 128
"""The most tokens of a suffix that stand before a prompt."""
_SEPARATOR = "\n\n"
SEEN_TOKENS = 128
"""How much of a prompt's end is searched for its last line or sentence."""
_LETTER = "x"


class Opening(msgspec.Struct, frozen=True):
    """Ids that candidates continue. ``begun`` is the part of a middle that they end with."""

    ids: tuple[int, ...]
    begun: str = ""


def openings(
    prompt_ids: Sequence[int],
    suffix: str,
    suffix_ids: Sequence[int],
    tokenizer: Tokenizer,
    vocab: VocabView,
    *,
    most_tokens: int,
) -> list[Opening]:
    """Returns the openings of at most ``most_tokens`` tokens; the first one is the prompt."""
    bos = tokenizer.bos_id
    start = 1 if bos is not None and prompt_ids[:1] == (bos,) else 0
    visible = suffix_ids[:SHOWN_TOKENS]
    shown = b"".join(vocab.pieces[token] for token in visible).decode(errors="ignore").strip("\n")
    behind = encode("suffix", shown + _SEPARATOR, tokenizer, parse_special=False)
    fronts = [tuple(prompt_ids), (*prompt_ids[:start], *behind, *prompt_ids[start:])]
    begun = [((), ""), *_indented(prompt_ids, suffix, tokenizer, vocab)]
    found = [Opening((*front, *ids), text) for front in fronts for ids, text in begun]
    return [found[0], *(opening for opening in found[1:] if len(opening.ids) <= most_tokens)]


def _indented(
    prompt_ids: Sequence[int], suffix: str, tokenizer: Tokenizer, vocab: VocabView
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields the beginnings of lines that are indented as the line before or after them."""
    before = text_of_ids(prompt_ids[-SEEN_TOKENS:], vocab)
    if missing_unit(before, suffix) != "lines":
        return
    above, below = _indentation(reversed(before.split("\n"))), _indentation(suffix.split("\n"))
    for spaces in dict.fromkeys((above, below)):
        # The last token begins the word behind the spaces, and may have one of them.
        ids = encode(
            "prompt", spaces + _LETTER, tokenizer, parse_special=False, continues=True
        )[:-1]  # fmt: skip
        if ids:
            yield tuple(ids), b"".join(vocab.pieces[token] for token in ids).decode()


def _indentation(lines: Iterator[str] | Sequence[str]) -> str:
    """Returns the white space at the start of the first line that has more."""
    first = next((line for line in lines if line.strip()), "")
    return first[: len(first) - len(first.lstrip())]
