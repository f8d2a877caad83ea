"""What clients send: honest requests of every kind, bodies to be refused, and hostile bytes."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chaos.wire import request_bytes

MARK = f"quillfeather{secrets.token_hex(4)}"
"""A word of every prompt, which no log and no file may have."""
_WORDS = (
    "the", "a", "river", "lamp", "stone", "walked", "under", "old", "quiet", "seven", "ships",
    "north", "and", "then", "letters", "window", "garden", "because", "snow", "counted", "slowly",
    "every", "bright", "door", "of", "my", "uncle", "never", "again", "street",
)  # fmt: skip
_FIRST = "Once upon a time there was a lighthouse keeper who wrote long letters. " * 3


class Bodies:
    """Draws requests for one model."""

    def __init__(self, model: str, dice: random.Random, *, embedded: bool) -> None:
        self._model = model
        self._dice = dice
        kinds = ["plain", "several", "best", "batch", "tokens", "stopped", "echoed"]
        # The upstreams that misbehave score no prompts.
        self._kinds = [*kinds, "infill", "scored"] if embedded else kinds

    def text(self) -> str:
        dice = self._dice
        start = _FIRST if dice.random() < 0.3 else ""
        return f"{start}{' '.join(dice.choices(_WORDS, k=dice.randint(3, 40)))} {MARK} the"

    def honest(self) -> tuple[str, dict[str, Any]]:
        """Returns a kind and a body that must be answered; some are streamed."""
        dice = self._dice
        kind = dice.choice(self._kinds)
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": self.text(),
            "max_tokens": dice.randint(1, 24),
            "temperature": dice.choice([0, 0.7, 1]),
            **getattr(self, f"_{kind}")(),
        }
        if body.get("best_of") is None and dice.random() < 0.6:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return kind, body

    def long(self) -> dict[str, Any]:
        """A stream that its client will leave or read slowly."""
        return {
            "model": self._model, "prompt": self.text(), "max_tokens": self._dice.randint(40, 120),
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip

    def short(self) -> dict[str, Any]:
        return {"model": self._model, "prompt": self.text(), "max_tokens": 3}

    def canary(self) -> dict[str, Any]:
        """The same each time; its answer must be the same each time (D1)."""
        return {
            "model": self._model, "prompt": _FIRST, "max_tokens": 12, "seed": 7, "logprobs": 2,
            "ignore_eos": True,
        }  # fmt: skip

    def widest(self) -> dict[str, Any]:
        """Steps that want as many rows as a step may have, and so take the largest buffers."""
        ids = [self._dice.randint(40, 250) for _ in range(900)]
        return {"model": self._model, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}

    def _plain(self) -> Mapping[str, Any]:
        return {"seed": self._dice.randint(0, 9)}

    def _scored(self) -> Mapping[str, Any]:
        return {"echo": True, "logprobs": self._dice.randint(0, 5),
                "max_tokens": self._dice.choice([0, 0, 1, 4])}  # fmt: skip

    def _echoed(self) -> Mapping[str, Any]:
        return {"echo": True, "max_tokens": self._dice.randint(1, 5)}

    def _several(self) -> Mapping[str, Any]:
        return {"n": self._dice.randint(2, 4), "max_tokens": self._dice.randint(1, 10)}

    def _best(self) -> Mapping[str, Any]:
        n = self._dice.randint(1, 2)
        return {"n": n, "best_of": n + self._dice.randint(1, 3), "max_tokens": 6, "temperature": 1}

    def _batch(self) -> Mapping[str, Any]:
        prompts = [self.text() for _ in range(self._dice.randint(2, 5))]
        return {"prompt": prompts, "max_tokens": self._dice.randint(1, 6)}

    def _tokens(self) -> Mapping[str, Any]:
        ids = [self._dice.randint(40, 250) for _ in range(self._dice.randint(1, 60))]
        return {"prompt": ids, "logit_bias": {"98": self._dice.choice([-100, 5])}}

    def _stopped(self) -> Mapping[str, Any]:
        return {"stop": [" the", "\n"], "presence_penalty": 0.5, "frequency_penalty": -0.5}

    def _infill(self) -> Mapping[str, Any]:
        return {"suffix": f" and that was the end of {MARK}.", "max_tokens": 8}


class BadRequest(NamedTuple):
    """A request to be refused, and the statuses that may do so."""

    name: str
    raw: bytes
    statuses: Sequence[int]


def bad_request(dice: random.Random, model: str, key: str) -> BadRequest:
    """Returns a request that is wrong in one way."""
    good = {"model": model, "prompt": MARK, "max_tokens": 1}
    if dice.random() < 0.7:
        changed = dice.choice(_BAD_FIELDS)
        return BadRequest(f"{changed}"[:60], request_bytes({**good, **changed}, key=key), (400,))
    broken = dice.choice(_BAD_JSON)
    nobodys = {**good, "model": "nobody's"}
    huge = {"Content-Length": "99999999999"}
    lost = f"/v1/{'x' * dice.randint(1, 3000)}"
    return dice.choice([
        BadRequest(f"body {broken[:60]!r}", request_bytes(broken, key=key), (400,)),
        BadRequest("model of nobody", request_bytes(nobodys, key=key), (404,)),
        BadRequest("no key", request_bytes(good), (401,)),
        BadRequest("PUT", request_bytes(b"", key=key, method="PUT"), (405,)),
        BadRequest("path of nothing", request_bytes(good, key=key, path=lost), (404,)),
        BadRequest("huge body", request_bytes(b"{", key=key, more=huge), (413,)),
        BadRequest("chat", request_bytes(good, key=key, path="/v1/chat/completions"), (404,)),
    ])  # fmt: skip


_BAD_FIELDS: Sequence[Mapping[str, Any]] = (
    {"max_tokens": -1}, {"max_tokens": "16"}, {"max_tokens": 1.5}, {"max_tokens": 10**30},
    {"n": 0}, {"n": 129}, {"n": 3, "best_of": 2}, {"best_of": 21}, {"best_of": 2, "stream": True},
    {"temperature": 2.1}, {"temperature": True}, {"top_p": -0.1}, {"logprobs": 101},
    {"stop": ""}, {"stop": ["x"] * 17}, {"stop": [1]}, {"logit_bias": {"x": 1}},
    {"logit_bias": {"99999999": 1}}, {"logit_bias": {"1": 101}}, {"logit_bias": [1]},
    {"seed": 2**63}, {"user": "\0"}, {"user": "u" * 2000}, {"prompt": []}, {"prompt": [[]]},
    {"prompt": [1, "a"]}, {"prompt": [99999999]}, {"prompt": [-1]}, {"prompt": {"a": 1}},
    {"prompt": ["a"] * 5000}, {"stream_options": {"include_usage": True}}, {"messages": []},
    {"unheard_of": 1}, {"echo": 1}, {"stream": "true"}, {"suffix": ["a"]},
)  # fmt: skip
_BAD_JSON: Sequence[bytes] = (
    b"", b"{", b"[]", b"null", b"nul", b"\xff\xfe", b'{"model":' + b"[" * 20_000,
    b'{"max_tokens": NaN}', b'{"prompt": "\xc3("}', b'{"n": 1, "n": 1}', b"{'a': 1}",
    b'{"prompt": "a"} x', b'{"prompt": "\\ud800\\u0000"', b"\0" * 100, b'{"a": 1e999999}',
)  # fmt: skip


_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_LINES = b"".join(b"x%d: y\r\n" % i for i in range(9000))
_HOSTILE: Mapping[str, bytes] = {
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "empty lines": b"\r\n" * 50,
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "null in the path": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": _HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    "many headers": _HEAD + _LINES + b"\r\n",
    "two lengths": _HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
    "length and chunks": _HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}"
    b"\r\n0\r\n\r\n",
    "negative length": _HEAD + b"Content-Length: -1\r\n\r\n{}",
    "short body": _HEAD + b"Content-Length: 1000\r\n\r\n{",
    "huge chunk": _CHUNKED + b"ffffffffffffffff\r\n{",
    "odd chunk": _CHUNKED + b"zz\r\n{}\r\n",
    "endless trailers": _CHUNKED + b"2\r\n{}\r\n0\r\n" + _LINES,
    "expectation": _HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    "upgrade": _HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "broken key": _HEAD + b"Authorization: Bearer \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
}


def hostile_bytes(dice: random.Random) -> tuple[str, bytes]:
    """Returns bytes that are no request, or one that must not be admitted, and their name."""
    return dice.choice([
        ("noise", dice.randbytes(dice.randint(1, 3000))),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(500)),
        *_HOSTILE.items(),
    ])  # fmt: skip
