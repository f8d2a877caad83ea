"""Tasks: files with one item a line, multiple choice or generation."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.repeated import repeated_name

MOST_TOKENS = 256
"""Of a generated answer, unless its item says otherwise; as in lm-evaluation-harness."""


_DIGEST_LETTERS = 32


class ChoiceItem(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A context and its possible continuations, of which ``choices[label]`` is right.

    A space between the two belongs to the choices.
    """

    context: str
    choices: list[str]
    label: int


class GenerationItem(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A prompt whose greedy completion, up to one of ``until``, is compared with ``target``.

    With several targets one of them has to match. ``regex`` finds the answer in the completion: a
    group, or all that it matches.
    """

    prompt: str
    target: str | list[str]
    until: str | list[str] = []
    regex: str | None = None
    max_tokens: int = MOST_TOKENS

    @property
    def targets(self) -> Sequence[str]:
        """The right answers."""
        return [self.target] if isinstance(self.target, str) else self.target

    @property
    def stops(self) -> list[str]:
        """The strings that end the completion."""
        return [self.until] if isinstance(self.until, str) else self.until


Item: TypeAlias = ChoiceItem | GenerationItem


def digest_of(item: Item) -> str:
    """Returns what tells an item from others: a hash of all that its outcome depends on, in hex."""
    return hashlib.sha256(msgspec.json.encode(item)).hexdigest()[:_DIGEST_LETTERS]


class Task(msgspec.Struct, frozen=True):
    """The items of a file, all of one kind. ``digest`` is the file's SHA-256 in hex."""

    name: str
    digest: str
    kind: type[ChoiceItem | GenerationItem]
    items: Sequence[Item]


def read_task(path: Path, *, first: int | None = None) -> Task:
    """Returns the task in a file, or its ``first`` items.

    Raises ``ConfigError`` that names line and field of what cannot be used.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    numbered = enumerate(raw.removeprefix(codecs.BOM_UTF8).splitlines(), 1)
    lines = [(f"{path}:{number}", line) for number, line in numbered if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: has no items")
    kind = _kind_of(*lines[0])
    items = [_item(place, line, kind) for place, line in lines[:first]]
    return Task(path.stem, hashlib.sha256(raw).hexdigest(), kind, items)


def _kind_of(place: str, line: bytes) -> type[ChoiceItem | GenerationItem]:
    try:
        keys = msgspec.json.decode(line, type=dict[str, msgspec.Raw]).keys()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: is not text in UTF-8") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{place}: is no JSON object: {error}") from error
    if "choices" in keys:
        return ChoiceItem
    if "target" in keys:
        return GenerationItem
    raise ConfigError(
        f"{place}: is neither multiple choice (context, choices, label) nor generation (prompt, "
        "until, target)"
    )


def _decoded(place: str, line: bytes, kind: type[ChoiceItem | GenerationItem]) -> Item:
    item: Item
    try:
        item = msgspec.json.decode(line, type=kind)
        repeated = repeated_name(line, nested=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: is not text in UTF-8") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        hint = "" if _kind_of(place, line) is kind else "; the first item is of another kind"
        raise ConfigError(f"{place}: {error}{hint}") from error
    if repeated is not None:
        # One of its values would be ignored, as in a request (R19).
        raise ConfigError(f"{place}: the key {repeated!r} is there twice")
    return item


def _item(place: str, line: bytes, kind: type[ChoiceItem | GenerationItem]) -> Item:
    item = _decoded(place, line, kind)
    if isinstance(item, ChoiceItem):
        if not 0 <= item.label < len(item.choices):
            raise ConfigError(
                f"{place}: label {item.label} is none of the {len(item.choices)} choices"
            )
        if "" in item.choices:
            raise ConfigError(f"{place}: a choice is empty")
        return item
    if not item.targets:
        raise ConfigError(f"{place}: target is empty")
    if "" in item.stops:
        raise ConfigError(f"{place}: until has an empty string")
    if item.max_tokens < 1:
        raise ConfigError(f"{place}: max_tokens {item.max_tokens} is less than 1")
    if item.regex is not None:
        try:
            re.compile(item.regex)
        except re.error as error:
            raise ConfigError(f"{place}: regex: {error}") from error
    return item
