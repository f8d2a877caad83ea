"""A model's chat template around a prompt, for aliases that answer instructions.

Templates come in files of models, so they are rendered in a sandbox, as by transformers and
llama.cpp: with ``raise_exception``, ``strftime_now`` and ``tojson``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from afterword.core.errors import InvalidRequest
from afterword.core.protocols import Tokenizer

_MARK = "\ue0f1\ue0a7\ue05d"
"""Characters for private use, which stand for a text until it is known where the text goes."""
_EXTENSIONS: Sequence[type[Extension]] = (loopcontrols,)


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
        except jinja2.TemplateError as error:
            raise TemplateUnusable(f"the chat template cannot be read: {error}") from error
        self._names = {"bos_token": bos, "eos_token": eos}

    @staticmethod
    def of(tokenizer: Tokenizer) -> ChatTemplate:
        """Returns the template of a model. Raises ``TemplateUnusable``."""
        if not tokenizer.chat_template:
            raise TemplateUnusable("the model's file has no chat template")

        def name(role: str) -> str:
            token = tokenizer.roles.get(role)
            return "" if token is None else tokenizer.pieces[token].decode(errors="replace")

        template = ChatTemplate(tokenizer.chat_template, bos=name("bos"), eos=name("eos"))
        template.frame("x", 0)
        return template

    def frame(self, prompt: str, now: int) -> Framed:
        """Returns a prompt as a user's message in front of the model's. ``now``: Unix seconds.

        Raises ``TemplateUnusable`` if the template fails, or writes another text than the prompt
        without the white space around it.
        """
        rendered = self._render([("user", prompt)], now)
        parts = self._render([("user", _MARK)], now).split(_MARK)
        for content in (prompt, prompt.strip()):
            if len(parts) == 2 and rendered == content.join(parts):
                skipped = len(prompt) - len(prompt.lstrip()) if content != prompt else 0
                return Framed(parts[0], content, parts[1], skipped)
        raise TemplateUnusable("the chat template changes the text of a message")

    def end_of_turn(self, now: int) -> str:
        """Returns the text that the template puts behind a model's message; empty if unknown."""
        try:
            rendered = self._render([("user", "x"), ("assistant", _MARK)], now, answers=False)
        except TemplateUnusable:
            # Some templates write no answers. The vocabulary's end tokens still end a text.
            return ""
        return rendered.rpartition(_MARK)[2] if _MARK in rendered else ""

    def _render(
        self, messages: Sequence[tuple[str, str]], now: int, *, answers: bool = True
    ) -> str:
        said = [{"role": role, "content": content} for role, content in messages]
        moment = datetime.fromtimestamp(now, UTC)
        try:
            return self._template.render(
                messages=said,
                add_generation_prompt=answers,
                strftime_now=moment.strftime,
                **self._names,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateUnusable(f"the chat template fails: {error}") from error


def refuse(alias: str, reason: TemplateUnusable) -> NoReturn:
    """Raises ``InvalidRequest`` for a prompt that a template does not take."""
    raise InvalidRequest(
        f"Invalid value for 'prompt': {alias} answers prompts in a chat, but {reason}.",
        param="prompt",
        code="invalid_value",
    ) from reason


def _to_json(value: Any, indent: int | None = None, **more: Any) -> str:  # noqa: ANN401 - any JSON
    return json.dumps(value, ensure_ascii=False, indent=indent, **more)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
