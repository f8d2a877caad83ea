"""Laws that hold on every engine."""

from __future__ import annotations

from typing import Any

from support.asgi import Client, fold


async def delivered_alike(client: Client, body: dict[str, Any], *, usage: bool) -> None:
    """One meaning, two deliveries: all fields are equal, except for the id, which is new."""
    answer = await client.complete(**body)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    folded = fold(await client.stream(**body, **options), usage=usage)
    assert folded.pop("id") != answer.pop("id")
    for whole in (answer, folded):
        # The number of cached tokens is not part of the meaning.
        whole.get("usage", {}).pop("prompt_tokens_details", None)
    if not usage:
        del answer["usage"]
    assert folded == answer
