"""A model's chat template around a prompt, for aliases that answer instructions.

Templates come in files of models, so they are rendered in a sandbox, as by transformers and
llama.cpp: with ``raise_exception``, ``strftime_now``, ``tojson`` and the tag ``generation``, and
with None for ``tools`` and ``documents``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from afterword.core.protocols import Tokenizer

_MARK = "\ue0f1\ue0a7\ue05d"
"""Characters for private use, which stand for a text until it is known where the text goes."""


class _Generation(Extension):
    """The tag that marks what a model writes, for those who train it. It changes no text."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        """Returns what stands between the tag and its end."""
        line = next(parser.stream).lineno
        said = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(said, lineno=line)


_EXTENSIONS: Sequence[type[Extension]] = (loopcontrols, _Generation)
_TOO_MUCH = (RecursionError, MemoryError)
_UNREADABLE = (jinja2.TemplateError, SyntaxError, *_TOO_MUCH)
"""Templates become Python, whose compiler has limits of its own."""
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, *_TOO_MUCH)


class TemplateUnusable(Exception):
    """A template that cannot be rendered; the message is for people."""


class Framed(msgspec.Struct, frozen=True):
    """What stands ``before`` and ``after`` a prompt, and the prompt as the template writes it.

    ``skipped`` counts the characters at the prompt's start that the template leaves out.
    """

    before: str
    content: str
    after: str
    skipped: int


class Message(msgspec.Struct, frozen=True):
    """What somebody says in a conversation. ``role``: system, user or assistant."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template with the special tokens of its model. Immutable."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=_EXTENSIONS
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except _UNREADABLE as error:
            raise TemplateUnusable(f"the chat template cannot be read: {_said(error)}") from error
        self._names = {"bos_token": bos, "eos_token": eos}

    @staticmethod
    def source_of(tokenizer: Tokenizer) -> tuple[str, str, str]:
        """Returns a model's template, and the names of its BOS and EOS.

        Raises ``TemplateUnusable`` if it has no template.
        """
        if not tokenizer.chat_template:
            raise TemplateUnusable("the model's file has no chat template")

        def name(role: str) -> str:
            token = tokenizer.roles.get(role)
            return "" if token is None else tokenizer.pieces[token].decode(errors="replace")

        return tokenizer.chat_template, name("bos"), name("eos")

    @staticmethod
    def of(tokenizer: Tokenizer) -> ChatTemplate:
        """Returns the template of a model. Raises ``TemplateUnusable``."""
        source, bos, eos = ChatTemplate.source_of(tokenizer)
        template = ChatTemplate(source, bos=bos, eos=eos)
        template.frame("x", 0)
        return template

    def frame(self, prompt: str, now: int) -> Framed:
        """Returns a prompt as a user's message in front of the model's. ``now``: Unix seconds.

        Raises ``TemplateUnusable`` if the template fails, or writes another text than the prompt
        without the white space around it.
        """
        rendered = self._render([Message("user", prompt)], now)
        parts = self._render([Message("user", _MARK)], now).split(_MARK)
        for content in (prompt, prompt.strip()):
            if len(parts) == 2 and rendered == content.join(parts):
                skipped = len(prompt) - len(prompt.lstrip()) if content != prompt else 0
                return Framed(parts[0], content, parts[1], skipped)
        raise TemplateUnusable("the chat template changes the text of a message")

    def converse(self, messages: Sequence[Message], now: int) -> tuple[str, Sequence[int | None]]:
        """Returns a conversation as a prompt, and where the text of each message begins in it.

        The model's message comes next. If the last message is the assistant's, it has begun with
        that text. A text that the template changes has None. Raises ``TemplateUnusable``.
        """
        *before, last = messages
        begun = last.content if last.role == "assistant" else ""
        said = before if last.role == "assistant" else messages
        rendered = self._render(said, now)
        offsets = self._offsets(said, rendered, now)
        if last.role == "assistant":
            offsets.append(len(rendered))
        return rendered + begun, offsets

    def _offsets(self, messages: Sequence[Message], rendered: str, now: int) -> list[int | None]:
        """Returns where the texts begin. Marks in their places say what stands between them."""
        unknown: list[int | None] = [None] * len(messages)
        marked = [msgspec.structs.replace(message, content=_MARK) for message in messages]
        try:
            parts = self._render(marked, now).split(_MARK)
        except TemplateUnusable:
            return unknown
        if len(parts) != len(messages) + 1:
            return unknown
        offsets: list[int | None] = []
        end = len(parts[0])
        for message, part in zip(messages, parts[1:], strict=True):
            texts = (message.content, message.content.strip())
            fitting = [text for text in texts if rendered.startswith(text + part, end)]
            if not fitting:
                return unknown
            offsets.append(end if fitting[0] == message.content else None)
            end += len(fitting[0]) + len(part)
        return offsets if end == len(rendered) else unknown

    def end_of_turn(self, now: int) -> str:
        """Returns the text that the template puts behind a model's message; empty if unknown."""
        try:
            said = [Message("user", "x"), Message("assistant", _MARK)]
            rendered = self._render(said, now, answers=False)
        except TemplateUnusable:
            # Some templates write no answers. The vocabulary's end tokens still end a text.
            return ""
        return rendered.rpartition(_MARK)[2] if _MARK in rendered else ""

    def _render(self, messages: Sequence[Message], now: int, *, answers: bool = True) -> str:
        said = [{"role": each.role, "content": each.content} for each in messages]
        moment = datetime.fromtimestamp(now, UTC)
        try:
            return self._template.render(
                messages=said,
                add_generation_prompt=answers,
                # As transformers has them when there are none.
                tools=None,
                documents=None,
                strftime_now=moment.strftime,
                **self._names,
            )
        except _FAILURES as error:
            raise TemplateUnusable(f"the chat template fails: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _to_json(value: object, indent: int | None = None, **more: Any) -> str:  # noqa: ANN401 - json's
    return json.dumps(value, indent=indent, **{"ensure_ascii": False, **more})


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
