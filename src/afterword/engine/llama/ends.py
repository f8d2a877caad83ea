"""What ends a generation: llama.cpp goes by the names of tokens, this table by what makers say.

llama.cpp makes tokens ends by a list of names, of whatever family and type they are. What a file
declares (its EOS, EOT and EOM tokens) ends a generation and is not looked at here.
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
    """What tokens of these ``names`` end, for this ``reason``.

    The rule is for vocabularies that have all names of ``beside``. ``as_text`` limits it to tokens
    that the file says are text: llama.cpp believes their names more than the file.
    """

    names: Sequence[str]
    ending: Ending
    reason: str
    beside: Sequence[str] = ()
    as_text: bool = False


RULES: Sequence[Rule] = (
    Rule(
        ("</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "[e~["),
        Ending.NOTHING,
        "HTML tags and the like are text where the file says so: </s> in Gemma 3 (id 212), "
        "in Qwen 2.5 (128247), in PLaMo",
        as_text=True,
    ),
    Rule(
        ("</s>",),
        Ending.NOTHING,
        "Gemma's vocabulary has the tags of HTML; its documents end with <eos>",
        beside=("<bos>", "<eos>"),
    ),
    Rule(
        ("▁<EOT>", " <EOT>"),
        Ending.ALL,
        "Code Llama: the middle ends with it; llama.cpp looks for _<EOT>, with another dash. "
        "Where the file says that it is text, its piece has a space",
        beside=("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ),
    Rule(
        ("<|EOT|>",),
        Ending.ALL,
        "DeepSeek Coder: eos_token of its instruct models, control token of all",
        beside=("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 - its own bars
    ),
    Rule(
        ("<|user|>", "<|observation|>"),
        Ending.ALL,
        "ChatGLM and GLM-4: eos_token_id of generation_config",
        beside=("[gMASK]", "<|user|>", "<|observation|>"),
    ),
    Rule(
        ("<|assistant|>",),
        Ending.ALL,
        "Phi-3: eos_token_id of generation_config; Phi-4, without placeholders, has it begin turns",
        beside=("<|end|>", "<|placeholder1|>"),
    ),
    Rule(
        ("<|end|>",),
        Ending.NOTHING,
        "gpt-oss: ends a message; a generation ends with <|return|> or <|call|>",
        beside=("<|return|>", "<|channel|>", "<|message|>"),
    ),
    Rule(
        ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        Ending.INFILL,
        "padding of infills in training; eos_token_id of no maker's generation_config",
    ),
    Rule(
        ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<repo_name>",
         "<|file_sep|>", "<file_sep>", "<filename>", "<|file_separator|>"),
        Ending.INFILL,
        "Qwen, StarCoder, Granite, SmolLM, CodeGemma: begins the next file, which ends a middle "
        "(CodeGemma's terminators) and goes on with a text of several files",
    ),
)  # fmt: skip
"""Later rules win over earlier ones."""


_NAMES = frozenset(name.encode() for rule in RULES for name in (*rule.names, *rule.beside))
_DECLARED = ("eos", "eot", "eom")
_FIM_ENDS = ("fim_pad", "fim_rep", "fim_sep")


class Ends(msgspec.Struct, frozen=True):
    """Tokens that end a generation, those that end an infill besides, and those that are text.

    ``text_ids`` are tokens that the library takes for control tokens by their names.
    """

    end_ids: frozenset[int]
    infill_end_ids: frozenset[int]
    text_ids: frozenset[int]


def ends_of(model: LlamaModel, tokens: Tokens) -> Ends:
    """What ends a generation with this model."""
    named = _named(tokens)
    declared = (model.metadata(f"tokenizer.ggml.{role}_token_id") for role in _DECLARED)
    found = find_ends(
        named,
        tokens.end_ids,
        declared={int(token) for token in declared if token is not None},
        typed_as_text=model.typed_as_text(named.values()),
    )
    # Those that the file declares may have other names.
    by_role = {token for role in _FIM_ENDS if (token := model.named(role)) is not None}
    infill_end_ids = found.infill_end_ids.union(by_role - found.end_ids)
    return msgspec.structs.replace(found, infill_end_ids=infill_end_ids)


def _named(tokens: Tokens) -> dict[bytes, int]:
    """The table's tokens that a vocabulary has, without a look at each of its tokens in Python."""
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
    """What ends a generation in a vocabulary that has ``named`` of the table's tokens.

    ``library_ends`` are the library's own; ``declared`` those that the file names as EOS, EOT or
    EOM; ``typed_as_text`` those that it says are text.
    """
    ends, infill, text = set(library_ends), set[int](), set[int]()
    for rule in RULES:
        if not all(name.encode() in named for name in rule.beside):
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
