"""What a client may see of an upstream's error text: plain words, numbers, names of parameters.

Error texts of servers have names of models, hosts, files and keys in them. Nobody can list what
must be hidden, so this module lists what may be shown, and leaves the rest out.
"""

from __future__ import annotations

import re
from collections.abc import Collection

PARAMS = frozenset({
    "allowed_token_ids", "best_of", "dry_base", "dry_multiplier", "dry_sequence_breakers", "echo",
    "frequency_penalty", "grammar", "ignore_eos", "json_schema", "logit_bias",
    "logprob_token_ids", "logprobs", "max_tokens", "min_p", "min_tokens", "model", "n",
    "presence_penalty", "prompt", "prompt_logprobs", "regex", "repetition_penalty",
    "response_format", "seed", "stop", "stop_token_ids", "stream", "stream_options",
    "structured_outputs", "suffix", "temperature", "top_k", "top_logprobs", "top_p", "typical_p",
    "user", "xtc_probability", "xtc_threshold",
})  # fmt: skip
"""The names that an error may give as its ``param``."""
_LEFT_OUT = "\u2026"
_MOST_CHARACTERS = 300
_SECRETS_FOLLOW = frozenset({"bearer", "host", "key", "password", "secret", "user", "path", "file",
                             "named", "called"})  # fmt: skip
_WORD = re.compile(r"[a-z]{1,20}(?:'[a-z]{1,2})?")
_FIRST = frozenset(
    {"A", "All", "An", "At", "Cannot", "Could", "Each", "Error", "Expected", "For", "If", "In",
     "Input", "Invalid", "Is", "It", "Maximum", "Minimum", "Missing", "No", "Not", "Only", "Please",
     "Prompt", "Request", "Requested", "Some", "That", "The", "There", "These", "This", "Too",
     "Unknown", "Unrecognized", "Unsupported", "Value", "You", "Your"}
)  # fmt: skip
"""Words with a capital that are nobody's name."""
_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,6})?")
_EDGES = "\"'`()[]{}<>,;:.!?"
_KNOWN = frozenset({"JSON", "UTF-8", "I"})


def redacted(text: str, names: Collection[str]) -> str:
    """Returns the first line of an upstream's error text without what a client must not see.

    ``names`` are hidden even if they are plain words. Returns "" if little is left.
    """
    hidden = {part.lower() for name in names for part in (name, *re.split(r"[^A-Za-z]+", name))}
    words = text.strip().partition("\n")[0][:_MOST_CHARACTERS].split()
    shown: list[str] = []
    begins, after = True, ""
    for word in words:
        bare = word.strip(_EDGES)
        kept = not bare or (
            after not in _SECRETS_FOLLOW and bare.lower() not in hidden and _plain(bare, begins)
        )
        if kept or bare in PARAMS:
            shown.append(word)
        elif not shown or shown[-1] != _LEFT_OUT:
            shown.append(_LEFT_OUT)
        begins, after = word[-1:] in ".!?:", bare.lower()
    visible = sum(word != _LEFT_OUT for word in shown)
    return " ".join(shown) if 2 * visible > len(words) else ""


def _plain(word: str, begins: bool) -> bool:
    """Returns whether a word can be nobody's name: capitals stand only where a sentence begins."""
    return bool(
        _WORD.fullmatch(word)
        or _NUMBER.fullmatch(word)
        or word in PARAMS
        or word in _KNOWN
        or (begins and word in _FIRST)
    )
