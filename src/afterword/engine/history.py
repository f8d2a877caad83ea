"""What penalties know of the tokens of a choice, and what they take from its next logits."""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from afterword.core.job import Repetition, SamplingParams
from afterword.core.limits import MOST_TAIL_TOKENS
from afterword.engine.arrays import Ids, Row, TokenIds

Number = TypeVar("Number", np.int32, np.int64)
Tail = tuple[int, ...]

_LARGEST = float(np.finfo(np.float32).max)
"""A larger penalty would be infinite, and ban a token."""
_LARGEST_LOG = math.log(_LARGEST)


class History:
    """The tokens of one choice, as far as its penalties need them.

    ``accept`` takes each token when it is certain. ``copy`` serves to look ahead along a draft.
    """

    __slots__ = ("_counts", "_params", "_repeats", "_seen")

    def __init__(self, prompt_ids: TokenIds, params: SamplingParams) -> None:
        self._params = params
        counted = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts: dict[int, int] | None = {} if counted else None
        self._seen: _Seen | _Recent | None = None
        if params.repetition_penalty != 1:
            window = params.repetition_window
            self._seen = _Recent.of(prompt_ids, window) if window else _Seen.of(prompt_ids)
        repetition = params.repetition
        self._repeats = _Repeats.of(prompt_ids, repetition) if repetition is not None else None

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """Whether any penalty is on."""
        return (
            params.presence_penalty != 0
            or params.frequency_penalty != 0
            or params.repetition_penalty != 1
            or params.repetition is not None
        )

    def accept(self, token: int) -> None:
        """Add a generated token."""
        if self._counts is not None:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen is not None:
            self._seen.add(token)
        if self._repeats is not None:
            self._repeats.add(token)

    def copy(self) -> History:
        """Returns a history that grows apart from this one."""
        other = object.__new__(History)
        other._params = self._params
        other._counts = None if self._counts is None else dict(self._counts)
        other._seen = None if self._seen is None else self._seen.copy()
        other._repeats = None if self._repeats is None else self._repeats.copy()
        return other

    def penalise(self, logits: Row) -> None:
        """Change the logits [vocabulary] in place (R13, R17)."""
        params = self._params
        if self._seen is not None:
            ids, penalty = self._seen.ids, np.float32(params.repetition_penalty)
            held = logits[ids]
            logits[ids] = np.where(held > 0, held / penalty, held * penalty)
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            times = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[ids] -= np.float32(params.frequency_penalty) * times + np.float32(
                params.presence_penalty
            )
        if self._repeats is not None:
            ids, penalties = self._repeats.penalties()
            logits[ids] -= penalties


class _Seen:
    """A growing set of token ids, as an array."""

    __slots__ = ("_array", "_count", "_known")

    def __init__(self, array: Ids, count: int, known: set[int]) -> None:
        self._array = array
        self._count = count
        self._known = known

    @classmethod
    def of(cls, prompt_ids: TokenIds) -> Self:
        array = np.unique(prompt_ids).astype(np.int64)
        return cls(array, len(array), set(array.tolist()))

    @property
    def ids(self) -> Ids:
        return self._array[: self._count]

    def add(self, token: int) -> None:
        if token in self._known:
            return
        self._known.add(token)
        self._array = _with_room(self._array, self._count)
        self._array[self._count] = token
        self._count += 1

    def copy(self) -> _Seen:
        return _Seen(self._array.copy(), self._count, set(self._known))


class _Recent:
    """The set of the last ``window`` token ids, as an array. ``window`` is at least 1.

    ``_times`` counts each id in ``_tokens``; ``_places`` says where ``_array`` has it.
    """

    __slots__ = ("_array", "_places", "_times", "_tokens")

    def __init__(
        self, tokens: deque[int], array: Ids, places: dict[int, int], times: Counter[int]
    ) -> None:
        self._tokens = tokens
        self._array = array
        self._places = places
        self._times = times

    @classmethod
    def of(cls, prompt_ids: TokenIds, window: int) -> Self:
        tokens = deque(prompt_ids[-window:].tolist(), min(window, sys.maxsize))
        times = Counter(tokens)
        places = {token: place for place, token in enumerate(times)}
        return cls(tokens, np.fromiter(times, np.int64, len(times)), places, times)

    @property
    def ids(self) -> Ids:
        return self._array[: len(self._places)]

    def add(self, token: int) -> None:
        if len(self._tokens) == self._tokens.maxlen:
            self._leave(self._tokens[0])
        self._tokens.append(token)
        self._times[token] += 1
        if token not in self._places:
            self._array = _with_room(self._array, len(self._places))
            self._array[len(self._places)] = token
            self._places[token] = len(self._places)

    def _leave(self, token: int) -> None:
        self._times[token] -= 1
        if self._times[token]:
            return
        del self._times[token]
        place, last = self._places.pop(token), len(self._places)
        if place < last:
            moved = int(self._array[last])
            self._array[place] = moved
            self._places[moved] = place

    def copy(self) -> _Recent:
        tokens, times = self._tokens.copy(), self._times.copy()
        return _Recent(tokens, self._array.copy(), self._places.copy(), times)


class _Repeats:
    """How many tokens before each place equal the last tokens.

    ``_equal[i]`` is the length of the longest common suffix of ``tokens[: i + 1]`` and of all
    tokens. A new token extends the suffixes that end before an equal token, and ends all others.
    """

    __slots__ = ("_equal", "_last", "_length", "_repetition", "_tokens")

    def __init__(
        self,
        repetition: Repetition,
        tokens: TokenIds,
        equal: TokenIds,
        length: int,
        last: _LastBreaker,
    ) -> None:
        self._repetition = repetition
        self._tokens = tokens
        self._equal = equal
        self._length = length
        self._last = last

    @classmethod
    def of(cls, prompt_ids: TokenIds, repetition: Repetition) -> Self:
        equal = np.array(_suffixes(prompt_ids.tolist()), np.int32)
        last = _LastBreaker(repetition.breakers, prompt_ids)
        return cls(repetition, prompt_ids.copy(), equal, len(prompt_ids), last)

    def copy(self) -> _Repeats:
        tokens, equal = self._tokens.copy(), self._equal.copy()
        return _Repeats(self._repetition, tokens, equal, self._length, self._last.copy())

    def add(self, token: int) -> None:
        self._tokens = _with_room(self._tokens, self._length)
        self._equal = _with_room(self._equal, self._length)
        length = self._length
        self._tokens[length] = token
        longer = self._equal[: length - 1] + 1
        self._equal[1:length] = np.where(self._tokens[1:length] == token, longer, 0)
        self._equal[0] = self._tokens[0] == token
        self._equal[length] = length + 1
        self._length = length + 1
        self._last.look(self._tokens, length)

    def penalties(self) -> tuple[Ids, Row]:
        """Returns the tokens that would extend a repetition, and what each of them loses."""
        repetition, allowed = self._repetition, self._repetition.allowed_length
        start = max(self._length - repetition.window, 0)
        tokens = self._tokens[start : self._length]
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        if len(tokens) <= allowed:
            return nothing
        most = self._last.tokens_since(start, self._length)
        if most < allowed:
            return nothing
        within = np.arange(1, len(tokens), dtype=np.int32)
        lengths = np.minimum(self._equal[start : self._length - 1], np.minimum(within, most))
        long = np.flatnonzero(lengths >= allowed)
        following, lengths = tokens[long + 1], lengths[long]
        longest_first = np.lexsort((-lengths, following))
        ids, first = np.unique(following[longest_first], return_index=True)
        exponents = lengths[longest_first][first] - allowed
        largest = _largest_exponent(repetition.base)
        if largest:
            exponents = np.minimum(exponents, largest)
        breakers = repetition.breakers
        loses = [() not in breakers.get(token, ()) for token in ids.tolist()]
        penalties = repetition.multiplier * np.power(repetition.base, exponents, dtype=np.float64)
        penalties = np.minimum(penalties[loses], _LARGEST)
        return ids[loses].astype(np.int64), penalties.astype(np.float32)


def _largest_exponent(base: float) -> int:
    return int(_LARGEST_LOG / math.log(base)) if base > 1.000001 else 0


class _LastBreaker:
    """Where the last breaker is that has come: the one that begins last, in its longest form.

    Each token is looked at once, when it comes.
    """

    __slots__ = ("_at", "_breakers", "_tail", "_tails")

    def __init__(self, breakers: Mapping[int, Sequence[Tail]], tokens: TokenIds) -> None:
        self._breakers = breakers
        self._tails: dict[int, frozenset[Tail]] = {}
        self._at, self._tail = -1, 0
        for at in range(len(tokens) - 1, -1, -1) if breakers else ():
            most = min(len(tokens) - at - 1, MOST_TAIL_TOKENS)
            ends = self._ends(int(tokens[at]))
            met = [n for n in range(most + 1) if ends and _tail_of(tokens, at, n) in ends]
            if met:
                self._at, self._tail = at, met[-1]
                return

    def copy(self) -> _LastBreaker:
        other = object.__new__(_LastBreaker)
        other._breakers, other._tails = self._breakers, self._tails
        other._at, other._tail = self._at, self._tail
        return other

    def look(self, tokens: TokenIds, end: int) -> None:
        """See whether the token at ``end``, which has just come, completes a breaker."""
        if not self._breakers:
            return
        for at in range(end, max(self._at, end - MOST_TAIL_TOKENS, 0) - 1, -1):
            ends = self._ends(int(tokens[at]))
            if ends and _tail_of(tokens, at, end - at) in ends:
                self._at, self._tail = at, end - at
                return

    def tokens_since(self, start: int, length: int) -> int:
        """Returns how many tokens come after it; all from ``start`` on if there is none."""
        return length - start if self._at < start else length - self._at - 1 - self._tail

    def _ends(self, token: int) -> frozenset[Tail]:
        """Returns what can follow a token that a breaker begins in."""
        found = self._tails.get(token)
        if found is None:
            found = self._tails[token] = frozenset(self._breakers.get(token, ()))
        return found


def _tail_of(tokens: TokenIds, at: int, count: int) -> Tail:
    return tuple(tokens[at + 1 : at + 1 + count].tolist())


def _suffixes(tokens: Sequence[int]) -> list[int]:
    """Returns for each place the length of the common suffix of the text up to it and of all.

    This is the Z-function of the reversed tokens, read backwards.
    """
    count = len(tokens)
    backwards = tokens[::-1]
    found = [count] * count
    left = right = 0
    for i in range(1, count):
        length = min(right - i, found[i - left]) if i < right else 0
        while i + length < count and backwards[length] == backwards[i + length]:
            length += 1
        if i + length > right:
            left, right = i, i + length
        found[i] = length
    return found[::-1]


def _with_room(array: npt.NDArray[Number], count: int) -> npt.NDArray[Number]:
    """Returns the array, or one twice as long with the same entries if all of it is used."""
    return array if count < len(array) else np.resize(array, 2 * count + 16)
