"""OpenAI's token ids in requests, translated through text into a model's own.

Only what means the same is translated: a prompt whose tokens are text, and a bias on a token that
the model has, too. Everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from afterword.completion.fields import shown
from afterword.completion.request import CompletionRequest
from afterword.core.errors import InvalidRequest
from afterword.core.protocols import Tokenizer

_OTHER_IDS = ("allowed_token_ids", "stop_token_ids", "logprob_token_ids")


class OldTokens:
    """A vocabulary of OpenAI: its name, and the bytes of each id. Special tokens are in none."""

    def __init__(self, name: str, pieces: Mapping[int, bytes]) -> None:
        self.name = name
        self._pieces = pieces

    def text(self, ids: Sequence[int], param: str = "prompt") -> str:
        """Returns the text of the ids in a field. Raises ``InvalidRequest``."""
        raw = b"".join(self._piece(param, token) for token in ids)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"Invalid value for '{param}': its {self.name} tokens begin or end inside a "
                "character, so they are no text.",
                param=param,
                code="invalid_value",
            ) from error

    def _piece(self, param: str, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            raise InvalidRequest(
                f"Invalid value for '{param}': {shown(token)} is no text token of {self.name}.",
                param=param,
                code="invalid_value",
            )
        return piece

    def translation(self, tokenizer: Tokenizer) -> TokenTranslation:
        """Returns the translation into a model's vocabulary."""
        own: dict[bytes, int | None] = {}
        for token, piece in enumerate(tokenizer.pieces):
            if token not in tokenizer.special_ids:
                own[piece] = None if piece in own else token
        return TokenTranslation(self, own)

    def biased(
        self, bias: Sequence[tuple[int, float]], own: Mapping[bytes, int | None]
    ) -> Iterator[tuple[int, float]]:
        """Yields the biases on a model's own tokens. Raises ``InvalidRequest``."""
        for token, value in bias:
            piece = self._piece("logit_bias", token)
            there = own.get(piece)
            if there is None:
                raise InvalidRequest(
                    f"Invalid value for 'logit_bias': {token} of {self.name} is "
                    f"{piece.decode(errors='replace')!r}, which is not one token of this model.",
                    param="logit_bias",
                    code="invalid_value",
                )
            yield there, value


class TokenTranslation:
    """From a vocabulary of OpenAI to a model's: ``own`` has its ids by their bytes.

    Bytes that several ids have are there with None.
    """

    def __init__(self, vocabulary: OldTokens, own: Mapping[bytes, int | None]) -> None:
        self.vocabulary = vocabulary
        self._own = own

    def translate(self, request: CompletionRequest) -> CompletionRequest:
        """Returns the request with text prompts and the model's own ids.

        Raises ``InvalidRequest`` for what has no exact translation.
        """
        for name in _OTHER_IDS:
            if getattr(request, name):
                raise InvalidRequest(
                    f"Token ids in '{name}' have no translation from {self.vocabulary.name}: ask "
                    "for the model by its own name.",
                    param=name,
                )
        prompts = tuple(
            prompt if isinstance(prompt, str) else self.vocabulary.text(prompt)
            for prompt in request.prompt
        )
        bias = request.logit_bias
        if bias:
            bias = tuple(self.vocabulary.biased(bias, self._own))
        return msgspec.structs.replace(request, prompt=prompts, logit_bias=bias)
