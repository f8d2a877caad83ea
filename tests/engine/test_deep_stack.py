"""Work that recurses deeply runs on a stack for it, and is otherwise as a call."""

from __future__ import annotations

import threading

import pytest

from afterword.engine.deep_stack import on_deep_stack


def test_it_returns_and_raises_what_the_work_does() -> None:
    assert on_deep_stack(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        on_deep_stack(lambda: 1 // 0)


def test_later_threads_have_the_usual_stack() -> None:
    usual_bytes = threading.stack_size()
    on_deep_stack(lambda: None)
    assert threading.stack_size() == usual_bytes
