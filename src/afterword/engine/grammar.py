"""Grammars that answers keep to: compiled by llguidance, followed token by token.

Only this file imports llguidance, and it is imported when the first grammar comes.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from afterword.core.errors import UnusableGrammar
from afterword.core.job import Constraint, OutputGrammar
from afterword.core.protocols import Tokenizer
from afterword.engine.changes import Mask
from afterword.engine.deep_stack import on_deep_stack
from afterword.engine.meeting_patterns import (
    refuse_meeting_schemas,
    refuse_meeting_terminals,
)
from afterword.engine.row_query import GrammarError
from afterword.engine.schema_numbers import refuse_numbers
from afterword.engine.schema_strictness import strict

_KEPT_GRAMMARS = 64
_SHOWN_CHARACTERS = 300
_WHITESPACE = r"[ \n\t]{0,16}"
"""Between the tokens of JSON. A bound, because small models would write spaces without end."""
_UNFORCED = '%llguidance {"no_forcing": true}\n'
"""Text that can only go on in one way is not looked up in advance: at each token, to its end."""
_TEMPERATURE = re.compile(
    r'^\s*[!?]*\w+\s*\[(?:"(?:\\.|[^"\\])*"|[^\]"])*?\btemperature\s*=', re.MULTILINE
)
"""An attribute of a Lark rule, which only llguidance's own samplers follow."""
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


class Grammars:
    """Compiles grammars for one vocabulary, and keeps the latest. Safe from any thread.

    Raises ``UnusableGrammar`` if the vocabulary has no end token, because no answer could end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.end_ids:
            raise UnusableGrammar("the model's vocabulary has no end token")
        self._vocabulary = len(tokenizer.pieces)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=self._vocabulary,
            eos_token=sorted(tokenizer.end_ids),
        )
        self._kept: OrderedDict[OutputGrammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, grammar: OutputGrammar) -> Constraint:
        """Returns a compiled grammar. Raises ``UnusableGrammar`` if it cannot be compiled."""
        with self._lock:
            found = self._kept.get(grammar)
        if found is None:
            # Rules and schemas may refer to one another a thousand levels deep.
            found = on_deep_stack(lambda: self._compile(grammar))
        with self._lock:
            self._kept[grammar] = found
            self._kept.move_to_end(grammar)
            while len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return Constraint(grammar, CompiledGrammar(found, self._vocabulary))

    def _compile(self, grammar: OutputGrammar) -> LLMatcher:
        try:
            source = _source(grammar)
        except Exception as error:  # noqa: BLE001 - readers of grammars raise what they like
            raise UnusableGrammar(_short(str(error))) from None
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # The first mask costs most, and is computed here once, not by the engine.
            GrammarMatcher(matcher, self._vocabulary).compute()
        if matcher.is_error():
            raise UnusableGrammar(_short(matcher.get_error()))
        return matcher


class CompiledGrammar:
    """A grammar for one vocabulary, as ``Constraint.compiled``."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def follow(self) -> GrammarMatcher:
        """Returns the state of a sequence that has no token yet."""
        return GrammarMatcher(self._matcher.deep_copy(), self._vocabulary)


class GrammarMatcher:
    """Where a sequence is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = np.zeros(-(-vocabulary // 32), np.int32)

    def compute(self) -> None:
        """Compute which tokens can come next. The matcher says if that fails."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)

    def mask(self) -> Mask:
        """Returns which tokens [vocabulary] can come next. Raises ``GrammarError``."""
        self.compute()
        if self._matcher.is_error():
            raise GrammarError(_short(self._matcher.get_error()))
        bytes_ = self._bits.view(np.uint8)
        bits = np.unpackbits(bytes_, count=self._vocabulary, bitorder="little")
        return bits.view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on behind a token. Raises ``GrammarError`` if it cannot come next."""
        if not self._matcher.consume_token(token):
            raise GrammarError(_short(self._matcher.get_error()))

    def valid(self, tokens: list[int]) -> int:
        """Returns how many of the tokens can come next, one after the other."""
        return self._matcher.validate_tokens(tokens)


class _Vocabulary:
    """A tokenizer in the shape that llguidance reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = min(tokenizer.end_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = list(tokenizer.pieces)
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        written = text if isinstance(text, str) else text.decode()
        return list(self._encode(written, parse_special=False, continues=True))


def _source(grammar: OutputGrammar) -> str:
    """Returns a grammar as llguidance reads it. Raises ``ValueError``, or another exception."""
    refuse_numbers(grammar.text)
    text = grammar.text
    match grammar.kind:
        case "json":
            schema = json.loads(text)
            refuse_meeting_schemas(schema)
            part = LLMatcher.grammar_from_json_schema(
                strict(schema), overrides={"whitespace_pattern": _WHITESPACE}
            )
        case "regex":
            part = LLMatcher.grammar_from_regex(text)
        case "choice":
            choices = " | ".join(json.dumps(choice) for choice in json.loads(text))
            return f"{_UNFORCED}start: {choices}"
        case "grammar":
            lark = gbnf_to_lark(text) if "::=" in text else text
            refuse_meeting_terminals(lark)
            if _TEMPERATURE.search(lark):
                raise ValueError("a rule cannot have a temperature")
            return _UNFORCED + lark
    inner = json.loads(part)["grammars"][0]
    outer = {"lark_grammar": f"{_UNFORCED}start: @{inner['name']}"}
    return json.dumps({"grammars": [outer, inner]})


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
