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
    "repetition_penalty": "`repetition_penalty`",
    "penalty_range": "`repetition_penalty_range`",
    "typical_p": "`typical_p`",
    "typical_min_p": "`typical_p` with `min_p`",
    "xtc": "`xtc_probability`, `xtc_threshold`",
    "dry": "`dry_multiplier` and other `dry_*`",
    "dry_unbroken": "`dry_sequence_breakers: []`",
    "allowed_ids": "`allowed_token_ids`",
    "stop_ids": "`stop_token_ids`",
    "special": "`skip_special_tokens`",
    "returned_ids": "`return_token_ids`",
    "ranks": "`prompt_logprobs`",
    "scored_ids": "`logprob_token_ids`",
    "scored_ids_and_top": "the same with `logprobs` above 0 or `echo`",
    "structured": "`response_format`, `structured_outputs`",
    "structured_scores": "the same with `logprobs` or `best_of`",
    "structured_truncation": "the same with `top_k`, `top_p` or another cut",
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
