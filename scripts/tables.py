"""Writes the tables of docs/ that are made: settings, what each dialect can do, all decisions.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test holds the documents to
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from afterword.config import SETTINGS, Setting
from afterword.gateway.dialects.dialect import Dialect
from afterword.gateway.dialects.registry import DIALECTS

DOCS = Path(__file__).resolve().parent.parent / "docs"
DECISIONS = DOCS / "decisions"
PAGES = ("configuration.md", "guides/gateway.md", "decisions/README.md")
PANELS = tuple(dict.fromkeys(setting.panel for setting in SETTINGS.values()))
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
"""What users call each feature that a dialect may lack or have a note on."""
_TABLE = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> Mapping[str, str]:
    """Every table by its name."""
    return {
        **{panel: settings_table(panel) for panel in PANELS},
        "dialects": dialects_table(list(DIALECTS.values())),
        "decisions": decisions_table(),
    }


def settings_table(panel: str) -> str:
    """A row for each setting of a panel."""
    rows = [["setting", "flag", "default", "meaning"], ["---"] * 4]
    rows += [
        [f"`{setting.name}`", _shown_flag(setting), setting.default, setting.help]
        for setting in SETTINGS.values()
        if setting.panel == panel
    ]
    return _markdown(rows)


def dialects_table(dialects: Sequence[Dialect]) -> str:
    """A row for each feature, a column for each dialect."""
    head = ["", *[f"`{dialect.name}+`" for dialect in dialects]]
    rows = [head, ["---"] * len(head)]
    for feature, text in ROWS.items():
        rows.append([text, *[_cell(dialect, feature) for dialect in dialects]])
    return _markdown(rows)


def decisions_table() -> str:
    """A row for each decision, from the first line of its page."""
    rows = [["number", "decision"], ["---"] * 2]
    for page in sorted(DECISIONS.glob("[0-9]*.md")):
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(" ")
        rows.append([f"[{number}]({page.name})", title])
    return _markdown(rows)


def with_tables(page: str) -> str:
    """A page with its tables as the code has them."""
    made = tables()
    return _TABLE.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


def main() -> None:
    """Write the pages."""
    for name in PAGES:
        page = DOCS / name
        page.write_text(with_tables(page.read_text()))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("|  |", "| |")


def _shown_flag(setting: Setting) -> str:
    if setting.value is None:
        return "none: never on the command line"
    if setting.is_switch:
        return f"`{setting.flag}`, `{setting.opposite}`"
    return f"`{setting.flag} {setting.value}`" + (", repeated" if setting.is_table else "")


def _cell(dialect: Dialect, feature: str) -> str:
    lacking = dialect.lacks.get(feature)
    if lacking is not None:
        return f"refused: {lacking}"
    return dialect.notes.get(feature, "yes")


if __name__ == "__main__":
    main()
