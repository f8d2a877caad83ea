"""Where a drawn text could join a suffix: places, the prompts that score them, the best ones (F3).

A candidate is a text that the model drew after a prompt. A joint is a place in it where the middle
could end and the suffix go on. Nothing here computes or waits.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from afterword.completion.choice import Presentation
from afterword.completion.encoding import encode
from afterword.completion.lengths import LengthCosts
from afterword.completion.openings import SEEN_TOKENS
from afterword.completion.prompt_text import VocabView, text_of_ids
from afterword.completion.text import Detokenizer, StopMatcher
from afterword.completion.units import Unit, begins_sentence, ends_sentence, missing_unit
from afterword.core.job import NO_TOKEN, Sampled, ScoredPrompt
from afterword.core.protocols import Tokenizer

SUFFIX_TOKENS = 24
"""The most tokens of a suffix that say how well a middle joins it."""
_TAIL_TOKENS = 8
"""The most tokens at a prompt's end that are tokenised anew together with the text after them."""
_KNOWN_BY = 16
"""How many characters of a suffix in a middle say that the middle repeats the suffix."""
_NEVER = -math.inf


class Seam(msgspec.Struct, frozen=True):
    """The text around a middle.

    ``head`` are the prompt's first ids, and ``tail`` is the text of its last few: ``tail``, a
    middle and ``suffix`` are tokenised as one text, so a token can reach over a joint. ``suffix``
    is the part of the suffix that is scored, and ``starts`` are the tokens that can begin it.
    ``tail_tokens`` is how many tokens the tail has by itself, and ``unit`` says what is missing.
    """

    head: tuple[int, ...]
    tail: str
    tail_tokens: int
    suffix: str
    starts: tuple[int, ...]
    unit: Unit


class Joint(msgspec.Struct, frozen=True):
    """A middle: the ``text`` of a candidate up to a place where it could end.

    ``promise`` says how good it looks before the whole suffix is scored: the log-probabilities of
    the ``tokens`` tokens that were drawn and of the suffix's first one. ``at_limit``: the place is
    the candidate's last one, because no more tokens were allowed.
    """

    text: str
    promise: float
    tokens: int = 0
    at_limit: bool = False


class Candidate:
    """The tokens of one continuation, as they come.

    Invariant: there is a log-probability for each token, and ``width`` top entries.
    """

    def __init__(self) -> None:
        self.tokens = array("i")
        self._logprobs = array("d")
        self._top_ids = array("i")
        self._top_logprobs = array("d")

    def add(self, event: Sampled) -> None:
        """Take in generated tokens with their log-probabilities."""
        self.tokens.extend(event.tokens)
        self._logprobs.extend(event.logprobs)
        self._top_ids.extend(event.top_ids)
        self._top_logprobs.extend(event.top_logprobs)

    @property
    def width(self) -> int:
        """The number of top entries at each position."""
        return len(self._top_ids) // len(self.tokens) if self.tokens else 0

    def logprob(self, position: int) -> float:
        """Returns the log-probability of the token at a position."""
        return self._logprobs[position]

    def logprobs_before(self, ends: Collection[int]) -> Sequence[float]:
        """Returns the log-probabilities of the tokens before the first one that is in ``ends``."""
        end = next((at for at, token in enumerate(self.tokens) if token in ends), len(self.tokens))
        return self._logprobs[:end]

    def logprob_of(self, position: int, ids: frozenset[int]) -> float:
        """Returns the log-probability that one of ``ids`` stands at a position."""
        row = slice(position * self.width, (position + 1) * self.width)
        entries = zip(self._top_ids[row], self._top_logprobs[row], strict=True)
        # A token may stand among the likeliest and among those that were asked for.
        found = {token: value for token, value in entries if token in ids and token != NO_TOKEN}
        return log_sum(found.values())


def log_sum(values: Iterable[float]) -> float:
    """Returns the logarithm of a sum of probabilities, which are given as logarithms."""
    listed = list(values)
    most = max(listed, default=_NEVER)
    if most == _NEVER:
        return _NEVER
    return most + math.log(math.fsum(math.exp(value - most) for value in listed))


def make_seam(
    prompt_ids: Sequence[int], suffix_ids: Sequence[int], tokenizer: Tokenizer, vocab: VocabView
) -> Seam:
    """Returns the seam between a prompt and a suffix."""
    cut, tail = len(prompt_ids), ""
    # At least one token stays in front: a scored prompt begins with it.
    for start in range(len(prompt_ids) - 1, max(len(prompt_ids) - 1 - _TAIL_TOKENS, 0), -1):
        ids = prompt_ids[start:]
        if ids[0] in tokenizer.special_ids or ids[0] in vocab.end_ids:
            break
        text = _text(ids, vocab)
        if text is not None and _encode(text, tokenizer) == list(ids):
            cut, tail = start, text
    scored = suffix_ids[:SUFFIX_TOKENS]
    suffix = b"".join(vocab.pieces[token] for token in scored).decode(errors="ignore")
    head, tail_tokens = tuple(prompt_ids[:cut]), len(prompt_ids) - cut
    unit = missing_unit(text_of_ids(prompt_ids[-SEEN_TOKENS:], vocab), suffix)
    return Seam(head, tail, tail_tokens, suffix, _starts(suffix, tokenizer), unit)


def _text(ids: Sequence[int], vocab: VocabView) -> str | None:
    """Returns the text of ids inside a text; None if it is not UTF-8."""
    try:
        return b"".join(vocab.pieces[token] for token in ids).decode()
    except UnicodeDecodeError:
        return None


def _encode(text: str, tokenizer: Tokenizer) -> Sequence[int]:
    return encode("suffix", text, tokenizer, parse_special=False, continues=True)


def _starts(suffix: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the tokens that can begin a text: its beginnings that are one token."""
    found: dict[int, None] = {}
    for end in range(1, min(len(suffix), tokenizer.max_piece_bytes) + 1):
        ids = _encode(suffix[:end], tokenizer)
        # A vocabulary may have no token for white space alone.
        if len(ids) == 1 or (ids and end == 1):
            found[ids[0]] = None
    return tuple(found)


def joints(
    candidate: Candidate,
    seam: Seam,
    vocab: VocabView,
    shown: Presentation,
    most_tokens: int,
    *,
    begun: str = "",
) -> list[Joint]:
    """Returns all middles of a candidate, in order, of at most ``most_tokens`` tokens.

    ``begun`` is the text that a middle has before the first token. If it has a stop string, there
    is no middle.

    A middle ends between two tokens, or inside a token whose rest agrees with the suffix. The text
    of a candidate ends before an end token, and at a stop string as ``shown`` says. It also ends
    where it has come to the suffix, because behind a repetition any suffix is likely. If a text
    begins with empty lines, its middles are there without them, too.
    """
    starts, suffix = frozenset(seam.starts), seam.suffix.encode()
    detokenizer = Detokenizer()
    matcher = StopMatcher(shown.stops, include=shown.include_stop)
    found: list[Joint] = []
    whole = begun
    sure, stopped = matcher.feed(begun, counts=not shown.min_tokens)
    if stopped:
        return []
    logprob = 0.0
    # Without its empty lines a text may have fewer tokens than ``min_tokens``.
    lines = None if shown.min_tokens else 0.0
    for at, token in enumerate(candidate.tokens):
        if _repeats(whole, seam):
            break
        counts = at >= shown.min_tokens
        between = not detokenizer.pending
        if counts and between:
            promise = logprob + candidate.logprob_of(at, starts)
            found += _middles(Joint(whole, promise, at, at == most_tokens), lines)
        if token in vocab.end_ids or at == most_tokens:
            break
        logprob += candidate.logprob(at)
        piece = b"" if token in shown.silent_ids else vocab.pieces[token]
        text, _ = detokenizer.feed(piece)
        ready, stopped = matcher.feed(text, counts=at + 1 > shown.min_tokens)
        sure += ready
        before, whole = whole, sure if stopped else whole + text
        if lines is not None and not whole.strip("\n"):
            lines = logprob
        if at + 1 < shown.min_tokens:
            continue
        for text in _inside(piece, before, whole, suffix) if between else ():
            found += _middles(Joint(text, logprob, at + 1), lines)
        if stopped:
            found += _middles(Joint(whole, logprob, at + 1), lines)
            break
    return found


def _repeats(text: str, seam: Seam) -> bool:
    """Whether a text has so much of the suffix's beginning that it repeats it."""
    known_by = seam.suffix.strip()[:_KNOWN_BY]
    return len(known_by) == _KNOWN_BY and known_by in text


def _middles(joint: Joint, lines: float | None) -> Iterator[Joint]:
    """Yields the joint, and the one without the empty lines in front, which cost ``lines``.

    If ``lines`` is None, they stay.
    """
    yield joint
    trimmed = joint.text.lstrip("\n")
    if lines is not None and trimmed and trimmed != joint.text:
        yield msgspec.structs.replace(joint, text=trimmed, promise=joint.promise - lines)


def _inside(piece: bytes, before: str, whole: str, suffix: bytes) -> Iterator[str]:
    """Yields the texts from ``before`` to ``whole`` behind which their last token has the suffix.

    ``piece`` is that token.
    """
    for kept in range(1, len(piece)):
        rest = piece[kept:]
        if suffix.startswith(rest) or (suffix and rest.startswith(suffix)):
            try:
                text = before + piece[:kept].decode()
            except UnicodeDecodeError:
                continue
            if whole.startswith(text):
                yield text


def promising(found: Iterable[Joint], costs: LengthCosts, unit: Unit) -> Sequence[Sequence[Joint]]:
    """Returns lists of middles, each text once, those that look best for their length first.

    The caller takes the first list in which a middle can be used. If sentences are missing, the
    first list has whole ones alone. Only the last list also has texts of nothing but white space.
    """
    best: dict[str, tuple[float, Joint]] = {}
    for joint in found:
        value = joint.promise - costs.of(joint.tokens)
        known = best.get(joint.text)
        if known is None or value > known[0]:
            best[joint.text] = value, joint
    ordered = [joint for _, joint in sorted(best.values(), key=lambda pair: -pair[0])]
    visible = [joint for joint in ordered if joint.text.strip()]
    wanted = [joint for joint in visible if _whole(joint.text)] if unit == "sentences" else []
    return wanted, visible, ordered


def _whole(text: str) -> bool:
    """Whether a text is whole sentences."""
    return begins_sentence(text) and ends_sentence(text)


class Trial(msgspec.Struct, frozen=True):
    """The prompt that scores a joint: prompt, middle and the suffix's beginning, one text.

    No middle changes the ids before ``start``; the suffix begins with the token at ``split``, or
    in it. The middle has ``tokens`` tokens.
    """

    joint: Joint
    ids: tuple[int, ...]
    start: int
    split: int
    tokens: int

    def score(self, scored: ScoredPrompt, costs: LengthCosts) -> float:
        """Returns the log-probability of the middle and of the suffix's beginning after it.

        What a middle of this length costs at least is taken off. There is a part for the prompt's
        last tokens, which changes only where a token reaches over the seam.
        """
        # The first entry belongs to the second token.
        whole = math.fsum(scored.logprobs[max(self.start - 1, 0) :])
        return whole - costs.of(self.tokens)

    @property
    def suffix_tokens(self) -> int:
        """How many tokens of the suffix are scored."""
        return len(self.ids) - self.split


def trial(joint: Joint, seam: Seam, tokenizer: Tokenizer) -> Trial:
    """Returns the prompt that scores a joint."""
    before = len((seam.tail + joint.text).encode())
    ids = _encode(seam.tail + joint.text + seam.suffix, tokenizer)
    end, split = 0, len(ids)
    for at, token in enumerate(ids):
        end += len(tokenizer.pieces[token])
        if end > before:
            split = at
            break
    start = len(seam.head)
    tokens = max(split - seam.tail_tokens, 0)
    return Trial(joint, (*seam.head, *ids), start, start + split, tokens)
