"""The paths of a route that clients use: with and without ``/v1``, with a slash at the end."""

from __future__ import annotations

from collections.abc import Mapping

_WITHOUT_VERSION = ("/completions", "/engines", "/models", "/chat/completions")
INSTEAD: Mapping[str, str] = {
    "/v1/chat/completions": "This server completes text and knows no chats: put the conversation "
    "into a text as the model's chat template has it, and send the text as the prompt of POST "
    "/v1/completions."
}
"""What to do instead of asking for a path that other servers have."""


def canonical(path: str) -> str:
    """Returns the path as the table of routes has it."""
    path = path.removesuffix("/") or path
    for start in _WITHOUT_VERSION:
        if path == start or path.startswith(f"{start}/"):
            return f"/v1{path}"
    return path
