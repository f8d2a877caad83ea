"""Random requests of every kind that the contract allows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from afterword.engine.toy import ToyTokenizer

TOKENIZER = ToyTokenizer()
VOCABULARY = len(TOKENIZER.pieces)
BROKEN = [i for i, piece in enumerate(TOKENIZER.pieces) if 128 <= piece[0] < 256 and len(piece) < 3]

WORDS = st.sampled_from(
    [
        "a",
        " the",
        "é",
        "e\u0301",
        "中文",
        "🙂",
        "👩‍👩‍👧",
        "\u202e",
        "\x00",
        "\n\n",
        "<|im_end|>",
        " x",
    ]
)
TEXT = st.lists(WORDS, max_size=8).map("".join)
IDS = st.lists(
    st.integers(0, VOCABULARY - 1) | st.sampled_from(BROKEN) | st.integers(256, VOCABULARY - 1),
    min_size=1,
    max_size=12,
)
PROMPT: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    TEXT,
    IDS,
    st.lists(TEXT, min_size=1, max_size=3),
    st.lists(IDS, min_size=1, max_size=3),
)
# Texts that the toy model writes, so that it meets them.
STOP = st.sampled_from(
    ["e", "i", "th", " t", "ing", "\n", ", ", ". ", "\ufffd", "é", "🙂", "aa", " the of", "zz", "a"]
)


@st.composite
def bodies(draw: st.DrawFn, *, greedy: bool) -> dict[str, Any]:
    """A request body without ``model`` and ``stream``."""
    half = st.integers(-4, 4).map(lambda i: i / 2)
    body: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"prompt": PROMPT, "max_tokens": st.integers(0, 24)},
            optional={
                "logprobs": st.integers(0, 5) | st.booleans(),
                "echo": st.booleans(),
                "stop": STOP | st.lists(STOP, max_size=4),
                "presence_penalty": half,
                "frequency_penalty": half,
                "logit_bias": st.dictionaries(
                    st.integers(0, VOCABULARY - 1).map(str),
                    st.sampled_from([-100, -3.5, 0, 0.5, 8, 100]),
                    max_size=3,
                ),
                "ignore_eos": st.booleans(),
                "user": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
            },
        )
    )
    if draw(st.booleans()):
        body["min_tokens"] = draw(st.integers(0, min(8, body["max_tokens"])))
    if greedy:
        return {**body, "temperature": 0}
    n = draw(st.integers(1, 3))
    drawn = draw(
        st.fixed_dictionaries(
            {"seed": st.integers(-(2**63), 2**63 - 1)},
            optional={
                "temperature": st.sampled_from([0, 0.5, 1, 2]),
                "top_p": st.sampled_from([0, 0.3, 0.9, 1]),
                "top_k": st.sampled_from([-1, 0, 1, 5]),
                "min_p": st.sampled_from([0, 0.1]),
            },
        )
    )
    return {**body, **drawn, "n": n}
