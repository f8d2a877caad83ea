"""Prompts that a chat template stands around: what is computed, and what answers show of it.

The model reads the whole of it. ``echo``, offsets, log-probabilities and ``usage`` are those of the
caller's prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from afterword.completion.chat_template import ChatTemplate, Framed, TemplateUnusable
from afterword.completion.encoding import encode
from afterword.completion.id_fields import Prompt
from afterword.completion.prompt_text import PromptText, Shown, VocabView, prompt_of_text
from afterword.completion.request import CompletionRequest
from afterword.core.errors import InvalidRequest
from afterword.core.protocols import Tokenizer

_REFUSED = ("suffix", "truncate_prompt_tokens", "prompt_logprobs")


class Framing(msgspec.Struct, frozen=True):
    """The chat template of an alias. ``now``, in Unix seconds, is for templates with a date."""

    alias: str
    template: ChatTemplate
    now: int

    def refuse_fields(self, request: CompletionRequest, *, infills: bool) -> None:
        """Raises ``InvalidRequest`` for what has no meaning inside a chat.

        ``infills``: the request is one of ``POST /infill``, which is a middle without a suffix,
        too (F5).
        """
        if infills:
            raise self._refusal("input_suffix")
        for prompt in request.prompt:
            if not isinstance(prompt, str):
                raise InvalidRequest(
                    f"Token ids in 'prompt': {self.alias} answers text in a chat (template=chat).",
                    param="prompt",
                )
        for name in _REFUSED:
            if getattr(request, name) is not None and getattr(request, name) != "":
                raise self._refusal(name)
        if request.add_special_tokens is False:
            raise self._refusal("add_special_tokens")

    def _refusal(self, name: str) -> InvalidRequest:
        return InvalidRequest(
            f"'{name}' cannot be honoured: {self.alias} answers prompts in a chat (template=chat).",
            param=name,
        )

    def frame(self, prompt: Prompt) -> Framed:
        """Returns a prompt in its chat. Raises ``InvalidRequest``."""
        try:
            return self.template.frame(str(prompt), self.now)
        except TemplateUnusable as error:
            raise InvalidRequest(
                f"Invalid value for 'prompt': {self.alias} answers prompts in a chat, but {error}.",
                param="prompt",
                code="invalid_value",
            ) from error

    def texts(self, request: CompletionRequest) -> Iterator[tuple[str, bool]]:
        """Yields the texts that are tokenised, and whether special tokens are parsed."""
        yield self.template.end_of_turn(self.now), True
        for prompt in request.prompt or ("",):
            framed = self.frame(prompt)
            yield framed.before, True
            yield framed.content, False
            yield framed.after, True

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the token that ends the model's turn, if the template has one."""
        return end_of_turn_ids(self.template, self.now, tokenizer)

    def prompt(
        self, prompt: Prompt, tokenizer: Tokenizer, vocab: VocabView, shown: Shown
    ) -> tuple[tuple[int, ...], PromptText]:
        """Returns the ids to compute, and the prompt as its choices show it.

        The names of special tokens in the caller's prompt are text.
        """
        sent = str(prompt)
        framed = self.frame(sent)
        before = encode("prompt", framed.before, tokenizer) if framed.before else []
        bos = tokenizer.bos_id
        if bos is not None and (not before or before[0] != bos):
            before = [bos, *before]
        content = encode(
            "prompt", framed.content, tokenizer, parse_special=False, continues=bool(before)
        ) if framed.content else []  # fmt: skip
        after = encode("prompt", framed.after, tokenizer) if framed.after else []
        if not (before or content or after):
            before = [tokenizer.document_start_id]
        text = prompt_of_text(framed.content, content, vocab, shown)
        text = msgspec.structs.replace(
            text,
            text=sent if shown.text else "",
            offsets=tuple(offset + framed.skipped for offset in text.offsets),
            hidden=len(before),
            framed=len(before) + len(after),
            fresh=False,
        )
        return (*before, *content, *after), text


def end_of_turn_ids(template: ChatTemplate, now: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the token that ends the model's turn, if the template has one."""
    text = template.end_of_turn(now)
    ids = encode("prompt", text, tokenizer) if text else []
    return tuple(ids[:1]) if ids[:1] and ids[0] in tokenizer.special_ids else ()
