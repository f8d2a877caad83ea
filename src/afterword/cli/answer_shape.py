"""How two JSON answers differ in shape: keys, and kinds of values. Values are not compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

_MAPS = frozenset(("top_logprobs", "prompt_logprobs"))
"""Objects whose keys are data."""


class Difference(msgspec.Struct, frozen=True):
    """A place of an answer, and how its shape differs there. A program may skip what ``is_new``."""

    path: str
    said: str
    is_new: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.said}"


def differences(recorded: Any, here: Any, path: str = "answer") -> Iterator[Difference]:  # noqa: ANN401 - JSON
    """Yields each place where ``here`` has another shape than what was recorded.

    Arrays are compared by their first elements that are not null.
    """
    theirs, ours = _kind(recorded), _kind(here)
    if theirs != ours:
        yield Difference(path, f"{theirs} was recorded, here it is {ours}")
        return
    if isinstance(recorded, Mapping):
        yield from _of_objects(recorded, here, path)
    elif isinstance(recorded, Sequence) and not isinstance(recorded, str):
        yield from _of_arrays(recorded, here, path)


def _of_objects(
    recorded: Mapping[str, Any], here: Mapping[str, Any], path: str
) -> Iterator[Difference]:
    if path.removesuffix("[]").rpartition(".")[2] in _MAPS:
        first, second = next(iter(recorded.values()), None), next(iter(here.values()), None)
        if first is not None and second is not None:
            yield from differences(first, second, f"{path}.*")
        return
    for name, value in recorded.items():
        if name in here:
            yield from differences(value, here[name], f"{path}.{name}")
        else:
            yield Difference(f"{path}.{name}", "was recorded, here it is missing")
    for name in here:
        if name not in recorded:
            yield Difference(f"{path}.{name}", "is new here", is_new=True)


def _of_arrays(recorded: Sequence[Any], here: Sequence[Any], path: str) -> Iterator[Difference]:
    first = next((value for value in recorded if value is not None), None)
    second = next((value for value in here if value is not None), None)
    if first is not None and second is not None:
        yield from differences(first, second, f"{path}[]")


def _kind(value: Any) -> str:  # noqa: ANN401 - JSON
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, Mapping) else "an array"


def folded(events: Sequence[Any]) -> dict[str, Any]:
    """Returns the shape of a stream: its chunks with choices as one, and the last one's usage.

    How tokens are divided into chunks is a matter of time, and so is which chunk has a reason to
    finish. So of each field the first value counts that is not null.
    """
    chunks = [event for event in events if isinstance(event, Mapping)]
    with_choices = [chunk for chunk in chunks if chunk.get("choices")]
    choices = [choice for chunk in with_choices for choice in chunk["choices"]]
    whole = _first_values(with_choices)
    if whole:
        whole["choices"] = [_first_values([c for c in choices if isinstance(c, Mapping)])]
    return {"chunk": whole, "usage": chunks[-1].get("usage") if chunks else None}


def _first_values(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in (item for each in objects for item in each.items()):
        if found.get(name) is None:
            found[name] = value
    return found
