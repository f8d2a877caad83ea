"""Long texts for the playground, as files of branches that it imports."""

from __future__ import annotations

from typing import Any


def branches_of(tokens: int) -> dict[str, Any]:
    """Returns a file of branches with one text of this many tokens, written by a model."""
    groups: list[dict[str, Any]] = []
    text = ""
    for i in range(tokens):
        token = f" word{i % 97}" if i % 40 else "\n\nThe"
        top = [[token, -0.1 - i % 7], [" other", -2.5], [" more", -3.5]]
        read = {"text": token, "logprob": -0.1 - i % 7, "top": top}
        groups.append({"start": len(text), "end": len(text) + len(token), "tokens": [read]})
        text += token
    root: dict[str, Any] = {
        "id": "root", "parent": None, "from": 0, "text": "", "by": "you", "groups": [],
        "whole": False, "name": "", "finish": None,
    }  # fmt: skip
    long = {**root, "id": "long", "parent": "root", "text": text, "by": "model", "groups": groups}
    return {"format": "afterword-branches", "version": 1, "nodes": [root, long]}
