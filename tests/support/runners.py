"""The engine's own runner on a file, without scheduler or HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.runner import LlamaRunner, temporary_runner


@contextmanager
def open_runner(
    path: Path, *, slots: int, slot_tokens: int, threads: int, exact: bool = True
) -> Iterator[LlamaRunner]:
    """A file on the engine's own runner."""
    model = LlamaModel(path)
    try:
        with temporary_runner(model, threads, exact=exact, slots=slots, room=slot_tokens) as runner:
            yield runner
    finally:
        model.close()
