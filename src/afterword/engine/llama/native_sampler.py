"""The sampler on all threads: ``engine.sampler`` in native code, equal to it in all bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from afterword.engine.arrays import Ids, LogProbs, Rows
from afterword.engine.llama.binding import additions
from afterword.engine.llama.context import exponentials, idle_pool
from afterword.engine.llama.native import ROW_BROKEN, ROW_DONE, DrawnRow
from afterword.engine.row_query import (
    NoNumbersError,
    NothingToDrawError,
    RowQuery,
    RowResult,
)
from afterword.engine.sampler import Sampler

_room_bytes: Any = additions.get("ggml_afterword_draw_room")
_draw: Any = additions.get("ggml_afterword_draw")
_LAYOUT = struct.Struct("@PP8d6i2dPP")
_ROW = np.dtype(DrawnRow)
_RESULTS = ("token", "state", "normaliser", "logprob", "rank")
_NO_DRAW = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0)
"""The parameters of a row whose token is given."""
_ALIGNMENT = 64
_MOST_THREADS = 16
"""More would not be faster, and each needs memory of its own."""
_WORTH_SHARING = 2**16
"""Logits whose exponentials take longer than other threads to learn of the work."""
_CHEAP = 4
"""So many rows of which only the highest logit is wanted cost as much as one with exponentials."""


def make_sampler(vocabulary: int, threads: int) -> Sampler:
    """Returns the sampler for rows of ``vocabulary`` logits, with up to ``threads`` threads.

    It is in numpy if the library is unchanged.
    """
    if _draw is None:
        return Sampler(vocabulary, exponentials)
    return NativeSampler(vocabulary, threads)


class _Table:
    """Memory for queries as the library reads them, with views of what it writes."""

    def __init__(self, rows: int) -> None:
        table = np.zeros(rows, _ROW)
        self.rows = rows
        self.bytes = table.view(np.uint8).data
        self.address: int = table.ctypes.data
        self._results = tuple(table[name] for name in _RESULTS)
        self._states = table["state"]

    def failed(self, count: int) -> bool:
        """Whether one of the first ``count`` rows has no result."""
        return bool(self._states[:count].any())

    def tokens(self, count: int) -> list[int]:
        """Returns the tokens of the first ``count`` rows."""
        tokens: list[int] = self._results[0][:count].tolist()
        return tokens

    def results(self, count: int) -> Iterator[tuple[int, int, float, float, int]]:
        """Yields of each row what ``_RESULTS`` names."""
        yield from zip(*(column[:count].tolist() for column in self._results), strict=True)


class NativeSampler(Sampler):
    """Answers queries on all threads. The infill filter, which reads text, stays in Python."""

    def __init__(self, vocabulary: int, threads: int) -> None:
        super().__init__(vocabulary, exponentials)
        self._size = vocabulary
        self._pool_threads = threads
        self._threads = min(threads, _MOST_THREADS)
        # Pages that no row needs are never taken.
        room = np.empty(self._threads * _room_bytes(vocabulary) + _ALIGNMENT, np.uint8)
        self._room = room[-room.ctypes.data % _ALIGNMENT :]
        self._room_address: int = self._room.ctypes.data
        self._changed_address: int = self._changed.ctypes.data
        self._table = _Table(1)

    def answer(self, rows: Rows, queries: Sequence[RowQuery]) -> list[RowResult]:
        """See ``Sampler.answer``. ``rows`` are contiguous."""
        if len(queries) == 1 and _is_greedy(queries[0]):
            answers = [self._answer(rows, queries[0])]
        elif any(_filters_infill(query) for query in queries):
            mine = [query for query in queries if not _filters_infill(query)]
            results = iter(self._natively(rows, mine))
            answers = [
                self._answer(rows, query) if _filters_infill(query) else next(results)
                for query in queries
            ]
        else:
            answers = self._natively(rows, queries)
        self._changes = 0
        return answers

    def _natively(self, rows: Rows, queries: Sequence[RowQuery]) -> list[RowResult]:
        count = len(queries)
        if not count:
            return []
        if not rows.flags.c_contiguous or rows.dtype != np.float32:
            raise AssertionError("rows are not contiguous floats")
        if count > self._table.rows:
            self._table = _Table(count)
        tops = [-1 if query.top is None else min(query.top, self._size) for query in queries]
        room = sum(tops) + tops.count(-1)
        top_ids, top_logprobs = np.empty(room, np.int64), np.empty(room, np.float64)
        work = self._write(rows.ctypes.data, queries, tops, top_ids, top_logprobs)
        self._compute(count, shared=count > 1 and work * self._size >= _WORTH_SHARING)
        scored = len(top_ids) or max(tops) == 0
        if not scored and not self._table.failed(count):
            return [RowResult(token) for token in self._table.tokens(count)]
        return self._read(tops, top_ids, top_logprobs)

    def _write(
        self, address: int, queries: Sequence[RowQuery], tops: Sequence[int],
        top_ids: Ids, top_logprobs: LogProbs,
    ) -> int:  # fmt: skip
        """Write queries into the table. Returns how many rows they are worth, if all were drawn."""
        ids_at = logprobs_at = 0
        if len(top_ids):
            ids_at, logprobs_at = top_ids.ctypes.data, top_logprobs.ctypes.data
        pack_into, table, stride = _LAYOUT.pack_into, self._table.bytes, 4 * self._size
        cheap = costly = at = 0
        for query, top in zip(queries, tops, strict=True):
            params = query.params
            drawn = _NO_DRAW
            if params is not None:
                drawn = (
                    params.temperature, params.top_p, params.min_p, params.typical_p,
                    params.xtc_probability, params.xtc_threshold,
                    # Any larger number keeps all tokens, too, and may not fit the table.
                    min(params.top_k, self._size),
                )  # fmt: skip
            changed = 0
            if query.changed is not None:
                changed = self._changed_address + query.changed * stride
            pack_into(
                table, at, address + query.row * stride, changed, query.uniform, query.second,
                *drawn, top, query.ranked, query.token, 0, 0, 0.0, 0.0, ids_at, logprobs_at,
            )  # fmt: skip
            at += _LAYOUT.size
            if top > 0:
                ids_at += 8 * top
                logprobs_at += 8 * top
            if top >= 0 or drawn[0]:
                costly += 1
            else:
                cheap += 1
        return costly + cheap // _CHEAP

    def _compute(self, count: int, *, shared: bool) -> None:
        arguments = (self._size, self._table.address, count, self._room_address)
        if not shared:
            _draw(None, 1, *arguments)
            return
        with idle_pool(self._pool_threads) as pool:
            _draw(pool, self._threads, *arguments)

    def _read(self, tops: Sequence[int], top_ids: Ids, top_logprobs: LogProbs) -> list[RowResult]:
        results = []
        end = 0
        for top, (token, state, normaliser, logprob, rank) in zip(
            tops, self._table.results(len(tops)), strict=True
        ):
            start, end = end, end + max(top, 0)
            if state != ROW_DONE:
                error = NoNumbersError() if state == ROW_BROKEN else NothingToDrawError()
                results.append(RowResult(error=error))
            elif top < 0:
                results.append(RowResult(token))
            else:
                likeliest = top_ids[start:end], top_logprobs[start:end]
                results.append(RowResult(token, normaliser, logprob, *likeliest, rank))
        return results


def _is_greedy(query: RowQuery) -> bool:
    """Whether a call of the library takes longer than all of the work."""
    return query.top is None and query.params is not None and query.params.temperature == 0


def _filters_infill(query: RowQuery) -> bool:
    return query.params is not None and query.params.infill is not None
