"""The table of features by dialect, for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from afterword.gateway.dialects.dialect import Dialect

ROWS: Mapping[str, str] = {
    "text": "text prompts, arrays, `n`, streams, `stop`, `echo`",
    "ids": "token ids, `logit_bias`, `/tokenize`",
    "suffix": "`suffix`, if the vocabulary has the tokens",
    "logprobs": "`logprobs`, `best_of`",
    "bytes": "`bytes:` tokens, offsets",
    "scoring": "`echo` with `logprobs`",
    "penalties": "`presence_penalty`, `frequency_penalty`",
    "top_k": "`top_k`",
    "min_p": "`min_p`",
    "min_tokens": "`min_tokens`",
    "ignore_eos": "`ignore_eos`",
    "cache_salt": "`cache_salt`",
    "seed": "`seed`",
    "usage": "`usage`",
    "cached_tokens": "`cached_tokens`",
}


def support_table(dialects: Sequence[Dialect]) -> str:
    """Returns a Markdown table: a row for each feature, a column for each dialect."""
    head = ["", *[f"`{dialect.name}+`" for dialect in dialects]]
    rows = [head, ["---"] * len(head)]
    for feature, text in ROWS.items():
        rows.append([text, *[_cell(dialect, feature) for dialect in dialects]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("|  |", "| |")


def _cell(dialect: Dialect, feature: str) -> str:
    lacking = dialect.lacks.get(feature)
    if lacking is not None:
        return f"refused: {lacking}"
    return dialect.notes.get(feature, "yes")
