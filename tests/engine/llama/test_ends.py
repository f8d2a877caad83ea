"""Generations end as the makers of models say, and not by the names of tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from gguf import TokenType

from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.ends import RULES, find_ends
from afterword.engine.llama.vocab import LlamaTokenizer
from support.tiny_gguf import make_gguf

TEXT, CONTROL, USER = TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED
CODE_LLAMA = {"▁<PRE>": TEXT, "▁<SUF>": TEXT, "▁<MID>": TEXT}
GEMMA = {"<bos>": CONTROL, "<eos>": CONTROL}


class Vocabulary:
    """The tokenizer of a tiny model with ``more`` tokens, of which some have ``roles``."""

    def __init__(
        self, folder: Path, more: Mapping[str, TokenType], roles: Mapping[str, str] | None = None
    ) -> None:
        path = make_gguf(folder / "x.gguf", more_tokens=more)
        first = LlamaModel(path)
        self.ids = {name: first.vocabulary - len(more) + at for at, name in enumerate(more)}
        first.close()
        changed = {
            f"tokenizer.ggml.{role}_token_id": self.ids[name]
            for role, name in (roles or {}).items()
        }
        model = LlamaModel(make_gguf(path, more_tokens=more, changed=changed))
        self.tokenizer = LlamaTokenizer(model)
        model.close()

    def ends(self, name: str) -> bool:
        return self.ids[name] in self.tokenizer.end_ids

    def ends_infill(self, name: str) -> bool:
        infill = self.tokenizer.infill
        assert infill is not None
        return self.ids[name] in infill.end_ids or self.ends(name)

    def is_special(self, name: str) -> bool:
        return self.ids[name] in self.tokenizer.special_ids


@pytest.mark.parametrize("kind", [TEXT, USER])
@pytest.mark.parametrize("name", ["</s>", "<EOT>", "[EOT]", "[EOS]"])
def test_a_text_token_named_like_an_end_is_text(tmp_path: Path, name: str, kind: TokenType) -> None:
    vocabulary = Vocabulary(tmp_path, {name: kind})
    assert not vocabulary.ends(name)
    assert not vocabulary.is_special(name)


@pytest.mark.parametrize("name", ["</s>", "<EOT>", "[EOT]", "[EOS]"])
def test_a_control_token_named_like_an_end_is_an_end(tmp_path: Path, name: str) -> None:
    vocabulary = Vocabulary(tmp_path, {name: CONTROL})
    assert vocabulary.ends(name)
    assert vocabulary.is_special(name)


@pytest.mark.parametrize("role", ["eos", "eot", "eom"])
def test_a_declared_token_ends_whatever_its_type(tmp_path: Path, role: str) -> None:
    vocabulary = Vocabulary(tmp_path, {"</s>": TEXT, **GEMMA}, {role: "</s>"})
    assert vocabulary.ends("</s>")


def test_gemmas_tag_ends_nothing(tmp_path: Path) -> None:
    for kind in (TEXT, USER, CONTROL):
        more = {"</s>": kind, "<end_of_turn>": USER, **GEMMA}
        vocabulary = Vocabulary(tmp_path, more, {"eos": "<eos>", "bos": "<bos>"})
        assert [vocabulary.ends(name) for name in more] == [False, True, False, True]


@pytest.mark.parametrize("kind", [USER, CONTROL])
def test_code_llamas_middle_ends(tmp_path: Path, kind: TokenType) -> None:
    vocabulary = Vocabulary(tmp_path, {**CODE_LLAMA, "▁<EOT>": kind})
    assert vocabulary.ends_infill("▁<EOT>")
    # In other vocabularies the name has no meaning.
    assert not Vocabulary(tmp_path, {"▁<EOT>": kind}).ends("▁<EOT>")


def test_code_llamas_end_as_sentencepiece_spells_it() -> None:
    named = {name.encode(): token for token, name in enumerate([*CODE_LLAMA, " <EOT>"])}
    found = find_ends(named, (), declared=(), typed_as_text=named.values())
    assert found.end_ids == {named[b" <EOT>"]}


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "others"),
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
         ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>",
         ["<fim_pad>", "<reponame>", "<filename>", "<file_sep>", "<repo_name>"]),
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ["<|file_separator|>"]),
    ],
)  # fmt: skip
def test_tokens_of_infills_end_infills_alone(
    tmp_path: Path, prefix: str, suffix: str, middle: str, others: list[str]
) -> None:
    names = [prefix, suffix, middle, *others]
    vocabulary = Vocabulary(tmp_path, dict.fromkeys(names, CONTROL))
    assert not any(map(vocabulary.ends, names))
    assert all(map(vocabulary.ends_infill, names))
    # They are still control tokens.
    assert all(map(vocabulary.is_special, names))


def test_a_declared_token_of_infills_may_have_any_name(tmp_path: Path) -> None:
    more = dict.fromkeys(["<a>", "<b>", "<c>", "<d>"], CONTROL)
    roles = {"fim_pre": "<a>", "fim_suf": "<b>", "fim_mid": "<c>", "fim_sep": "<d>"}
    assert Vocabulary(tmp_path, more, roles).ends_infill("<d>")


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        # Phi-3, by its generation_config; Phi-4-mini.
        (["<|end|>", "<|assistant|>", "<|placeholder1|>"], ["<|end|>", "<|assistant|>"]),
        (["<|end|>", "<|assistant|>", "<|user|>"], ["<|end|>"]),
        # GLM-4; others with turns.
        (["[gMASK]", "<|user|>", "<|observation|>", "<|assistant|>"],
         ["<|user|>", "<|observation|>"]),
        (["<|user|>", "<|observation|>"], []),
        # gpt-oss, with and without calls.
        (["<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>"],
         ["<|return|>", "<|call|>"]),
        (["<|end|>", "<|return|>", "<|channel|>", "<|message|>"], ["<|return|>"]),
        # DeepSeek Coder.
        (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<|EOT|>"], ["<|EOT|>"]),  # noqa: RUF001
        # Llama 3, Gemma 4.
        (["<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"], ["<|eot_id|>", "<|eom_id|>"]),
        (["<turn|>", "<|tool_response>", "<|turn>"], ["<turn|>", "<|tool_response>"]),
    ],
)  # fmt: skip
def test_families(tmp_path: Path, more: list[str], ends: list[str]) -> None:
    vocabulary = Vocabulary(tmp_path, dict.fromkeys(more, CONTROL))
    assert [name for name in more if vocabulary.ends(name)] == ends


def test_every_rule_has_a_reason_and_an_effect() -> None:
    """Each rule changes the library's ends, if these are none or all of the rule's tokens."""
    for rule in RULES:
        assert rule.reason
        names = [name.encode() for name in dict.fromkeys((*rule.names, *rule.requires))]
        named = {name: token for token, name in enumerate(names)}
        every = frozenset(named.values())
        outcomes = [
            find_ends(named, library, declared=(), typed_as_text=every)
            for library in (frozenset[int](), every)
        ]
        assert any(
            outcome.end_ids != library or outcome.infill_end_ids
            for outcome, library in zip(outcomes, (frozenset[int](), every), strict=True)
        )
        # No rule changes what the file declares.
        assert find_ends(named, every, declared=every, typed_as_text=every).end_ids == every
