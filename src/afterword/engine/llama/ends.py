"""Decides which tokens end a generation, by a table of what the makers of models say.

llama.cpp decides by a list of token names, whatever the model's family and the token's type. The
tokens that a file declares (EOS, EOT and EOM) always end a generation; the table leaves them alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum

import msgspec

from afterword.engine.llama.binding import LlamaModel, Tokens


class Ending(Enum):
    """What a token ends."""

    ALL = "every generation"
    INFILL = "an infill alone"
    NOTHING = "nothing"


class Rule(msgspec.Struct, frozen=True):
    """Tokens of these ``names`` have this ``ending``, for this ``reason``.

    The rule applies to vocabularies that have all names in ``requires``. ``as_text`` limits it to
    tokens that the file declares as text, because llama.cpp trusts their names more than the file.
    """

    names: Sequence[str]
    ending: Ending
    reason: str
    requires: Sequence[str] = ()
    as_text: bool = False


RULES: Sequence[Rule] = (
    Rule(
        ("</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "[e~["),
        Ending.NOTHING,
        "HTML tags and similar names are text if the file says so: </s> in Gemma 3 (id 212), "
        "in Qwen 2.5 (128247), in PLaMo",
        as_text=True,
    ),
    Rule(
        ("</s>",),
        Ending.NOTHING,
        "Gemma's vocabulary has HTML tags; its documents end with <eos>",
        requires=("<bos>", "<eos>"),
    ),
    Rule(
        ("▁<EOT>", " <EOT>"),
        Ending.ALL,
        "Code Llama: it ends the middle; llama.cpp looks for _<EOT>, with another dash. "
        "If the file declares it as text, its piece has a space",
        requires=("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ),
    Rule(
        ("<|EOT|>",),
        Ending.ALL,
        "DeepSeek Coder: eos_token of the instruct models, control token of all models",
        requires=("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 - its own bars
    ),
    Rule(
        ("<|user|>", "<|observation|>"),
        Ending.ALL,
        "ChatGLM and GLM-4: eos_token_id of generation_config",
        requires=("[gMASK]", "<|user|>", "<|observation|>"),
    ),
    Rule(
        ("<|assistant|>",),
        Ending.ALL,
        "Phi-3: eos_token_id of generation_config; in Phi-4, without placeholders, it begins turns",
        requires=("<|end|>", "<|placeholder1|>"),
    ),
    Rule(
        ("<|end|>",),
        Ending.NOTHING,
        "gpt-oss: ends a message; a generation ends with <|return|> or <|call|>",
        requires=("<|return|>", "<|channel|>", "<|message|>"),
    ),
    Rule(
        ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        Ending.INFILL,
        "padding of infills in training; no maker's generation_config has it as eos_token_id",
    ),
    Rule(
        ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<repo_name>",
         "<|file_sep|>", "<file_sep>", "<filename>", "<|file_separator|>"),
        Ending.INFILL,
        "Qwen, StarCoder, Granite, SmolLM, CodeGemma: begins the next file. This ends a middle "
        "(CodeGemma's terminators), but not a text of several files",
    ),
)  # fmt: skip
"""Later rules win over earlier ones."""


_NAMES = frozenset(name.encode() for rule in RULES for name in (*rule.names, *rule.requires))
_DECLARED = ("eos", "eot", "eom")
_FIM_ENDS = ("fim_pad", "fim_rep", "fim_sep")


class Ends(msgspec.Struct, frozen=True):
    """Tokens that end every generation, and tokens that end an infill only.

    ``text_ids`` are text, although the library treats them as control tokens because of their
    names.
    """

    end_ids: frozenset[int]
    infill_end_ids: frozenset[int]
    text_ids: frozenset[int]


def ends_of(model: LlamaModel, tokens: Tokens) -> Ends:
    """Returns the tokens that end a generation of this model."""
    named = _named(tokens)
    declared = (model.metadata(f"tokenizer.ggml.{role}_token_id") for role in _DECLARED)
    found = find_ends(
        named,
        tokens.end_ids,
        declared={int(token) for token in declared if token is not None},
        typed_as_text=model.typed_as_text(named.values()),
    )
    # Tokens that the file declares for infill may have other names.
    by_role = {token for role in _FIM_ENDS if (token := model.named(role)) is not None}
    infill_end_ids = found.infill_end_ids.union(by_role - found.end_ids)
    return msgspec.structs.replace(found, infill_end_ids=infill_end_ids)


def _named(tokens: Tokens) -> dict[bytes, int]:
    """Returns the table's tokens in a vocabulary by name, without a Python loop over all tokens."""
    pieces = tokens.pieces
    here = _NAMES.intersection(pieces)
    named = {pieces[token]: token for token in tokens.control_ids if pieces[token] in here}
    return named | {name: pieces.index(name) for name in here - named.keys()}


def find_ends(
    named: Mapping[bytes, int],
    library_ends: Collection[int],
    *,
    declared: Collection[int],
    typed_as_text: Collection[int],
) -> Ends:
    """Returns the tokens that end a generation.

    ``named`` maps names of the table that the vocabulary has to ids. ``library_ends`` are the ends
    by the library, ``declared`` those that the file declares as EOS, EOT or EOM, ``typed_as_text``
    the tokens that the file declares as text.
    """
    ends, infill, text = set(library_ends), set[int](), set[int]()
    for rule in RULES:
        if not all(name.encode() in named for name in rule.requires):
            continue
        for name in rule.names:
            token = named.get(name.encode())
            if token is None or token in declared:
                continue
            if rule.as_text and token not in typed_as_text:
                continue
            ends.discard(token)
            infill.discard(token)
            if rule.ending is Ending.ALL:
                ends.add(token)
            elif rule.ending is Ending.INFILL:
                infill.add(token)
            elif token in typed_as_text:
                text.add(token)
    return Ends(frozenset(ends), frozenset(infill), frozenset(text))
