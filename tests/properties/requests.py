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


SOME_IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5)
EXTENSIONS: dict[str, st.SearchStrategy[Any]] = {
    "typical_p": st.sampled_from([0.3, 0.9, 1]),
    "xtc_probability": st.sampled_from([0, 0.5, 1]),
    "xtc_threshold": st.sampled_from([0, 0.05, 0.5, 1]),
    "repetition_penalty": st.sampled_from([0.5, 1, 1.3]),
    "repetition_penalty_range": st.sampled_from([-1, 0, 3, 256]),
    "dry_multiplier": st.sampled_from([0, 0.8]),
    "dry_allowed_length": st.integers(0, 2),
    "dry_penalty_last_n": st.sampled_from([-1, 0, 7]),
    "dry_sequence_breakers": st.lists(STOP, max_size=2),
    "allowed_token_ids": st.just(list(range(0, VOCABULARY, 2))),
    "stop_token_ids": SOME_IDS,
    "include_stop_str_in_output": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "add_special_tokens": st.booleans(),
    "truncate_prompt_tokens": st.sampled_from([-1, 1, 2, 5]),
    "logprob_token_ids": SOME_IDS,
    "prompt_logprobs": st.integers(0, 3),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
}
"""R17: fields with vLLM's names, and llama.cpp's samplers."""


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
                **EXTENSIONS,
            },
        )
    )
    return {**body, **drawn, "n": n}
