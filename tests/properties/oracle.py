"""What the contract says of a greedy request, computed the slow and plain way on the toy model.

Nothing here is incremental: whole byte strings are decoded, whole texts are searched.
"""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np
import numpy.typing as npt

from afterword.core.draws import mix64
from afterword.engine.toy import ToyRunner, ToyTokenizer


def characters(raw: bytes) -> list[tuple[int, int]]:
    """The byte range of every character of ``raw.decode(errors="replace")``."""
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(raw):
        try:
            rest = raw[at:].decode()
            broken = None
        except UnicodeDecodeError as error:
            rest = raw[at : at + error.start].decode()
            broken = (at + error.start, at + error.end)
        for character in rest:
            size = len(character.encode())
            spans.append((at, at + size))
            at += size
        if broken is not None:
            spans.append(broken)
            at = broken[1]
    return spans


def complete_text(raw: bytes) -> str:
    """The characters that no further byte can change."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw)


def spell(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class Oracle:
    """Answers greedy requests of one prompt to the toy model."""

    def __init__(self, tokenizer: ToyTokenizer, context_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.context = context_tokens
        self.vocabulary = len(tokenizer.pieces)
        self._runner = ToyRunner(self.vocabulary, slots=1, end_ids=sorted(tokenizer.end_ids))

    def row(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        state = 1
        for token in tokens:
            state = mix64(state ^ (token + 1))
        return self._runner.row(state)

    def prompt_ids(self, prompt: str | list[int] | None) -> tuple[list[int], int]:
        """Ids, and how many of them the server added."""
        if not prompt:
            return [self.tokenizer.document_start_id], 1
        if isinstance(prompt, list):
            return prompt, 0
        ids = self.tokenizer.encode(prompt)
        bos = self.tokenizer.bos_id
        return ([bos, *ids], 1) if bos is not None and ids[0] != bos else (ids, 0)

    def generate(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], bool]:
        """Tokens generated, and whether an end token was the last; stop strings aside."""
        room = self.context - len(ids)
        limit = body.get("max_tokens", room)
        made: list[int] = []
        bias = {int(k): np.float32(v) for k, v in body.get("logit_bias", {}).items()}
        while len(made) < limit:
            row = self.row(ids + made).copy()
            for token, value in bias.items():
                row[token] = -np.inf if value == -100 else row[token] + value
            for token in set(made):
                row[token] -= np.float32(
                    body.get("frequency_penalty", 0) * made.count(token)
                    + body.get("presence_penalty", 0)
                )
            if len(made) < body.get("min_tokens", 0):
                row[sorted(self.tokenizer.end_ids)] = -np.inf
            token = int(row.argmax())
            made.append(token)
            if token in self.tokenizer.end_ids and not body.get("ignore_eos", False):
                return made, True
        return made, False

    def answer(self, prompt: str | list[int] | None, body: dict[str, Any]) -> dict[str, Any]:
        """The choice of a greedy request, and its ``tokens`` for the usage."""
        pieces, end_ids = self.tokenizer.pieces, self.tokenizer.end_ids
        ids, hidden = self.prompt_ids(prompt)
        visible = ids[hidden:]
        made, ended = self.generate(ids, body)
        finish = "stop" if ended else "length"
        before = b"".join(pieces[t] for t in visible)
        shown = [b"" if t in end_ids else pieces[t] for t in made]
        prompt_text = complete_text(before)

        def text_of(count: int, *, final: bool) -> str:
            raw = before + b"".join(shown[:count])
            if not any(shown[:count]):
                return ""
            whole = raw.decode(errors="replace") if final else complete_text(raw)
            return whole[len(prompt_text) :]

        text, count = text_of(len(made), final=True), len(made)
        least = body.get("min_tokens", 0)
        before_stops = len(text_of(least, final=False)) if len(made) > least else len(text)
        cut = _first_stop(text, body.get("stop") or [], before_stops)
        if cut is not None:
            finish = "stop"
            end = cut[1]
            count = next(
                (k for k in range(len(made)) if len(text_of(k, final=False)) >= end), len(made)
            )
            text = text[: cut[0]]
        if body.get("echo"):
            anything = any(shown)
            text = (prompt_text if anything else before.decode(errors="replace")) + text
        return {
            "text": text,
            "finish_reason": finish,
            "logprobs": self._logprobs(body, ids, hidden, made[:count]),
            "tokens": count,
            "prompt_tokens": len(ids),
        }

    def _logprobs(
        self, body: dict[str, Any], ids: list[int], hidden: int, made: list[int]
    ) -> list[tuple[str, float | None, list[tuple[str, float]] | None, int]] | None:
        """Token, log-probability, top entries and offset of every position shown."""
        wanted = body.get("logprobs")
        if wanted is None:
            return None
        pieces, end_ids = self.tokenizer.pieces, self.tokenizer.end_ids
        visible = ids[hidden:]
        raw = b"".join(pieces[t] for t in visible)
        shown = [b"" if t in end_ids else pieces[t] for t in made]
        spans = characters(raw + b"".join(shown))
        entries: list[tuple[str, float | None, list[tuple[str, float]] | None, int]] = []
        at = 0
        tokens = [(t, pieces[t]) for t in visible] + list(zip(made, shown, strict=True))
        whole = raw + b"".join(shown)
        for i, (token, piece) in enumerate(tokens):
            offset = _offset(spans, at) if piece else len(complete_text(whole[:at]))
            at += len(piece)
            generated = i >= len(visible)
            if not generated and not body.get("echo"):
                continue
            if i == 0 and not generated:
                entries.append((spell(pieces[token]), None, None, offset))
                continue
            row = self.row((ids + made)[: hidden + i]).astype(np.float64)
            logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
            likeliest = np.lexsort((np.arange(len(row)), -row))[:wanted]
            chosen = [*likeliest.tolist(), *([] if token in likeliest else [token])]
            top = [(spell(pieces[t]), float(logprobs[t])) for t in chosen]
            entries.append((spell(pieces[token]), float(logprobs[token]), top, offset))
        return entries


def _offset(spans: list[tuple[int, int]], byte: int) -> int:
    """The character that a byte belongs to."""
    return next((i for i, (_, end) in enumerate(spans) if byte < end), len(spans))


def _first_stop(text: str, stops: str | list[str], behind: int) -> tuple[int, int] | None:
    """Start and end of the stop that completes first ``behind`` here, the longest on a tie."""
    listed = [stops] if isinstance(stops, str) else stops
    starts = [(text.find(s, max(behind + 1 - len(s), 0)), len(s)) for s in listed]
    found = [(start + size, -size) for start, size in starts if start >= 0]
    if not found:
        return None
    end, minus = min(found)
    return end + minus, end
