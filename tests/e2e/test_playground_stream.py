"""What a token costs the page in a stream: as much behind a long text as behind a short one.

The page's own ``fetch`` answers with tokens that the test hands out, so nothing depends on speed.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from e2e.browser import Playground
from e2e.handed import Handed, hand_out

LONG = "The keeper wrote a letter to his daughter every day of the long winter.\n" * 300


@pytest.fixture
def handed(editor: Playground) -> Handed:
    return hand_out(editor.page)


def shown(page: Page) -> str:
    """Returns the text that the page shows during a stream."""
    return str(page.evaluate("document.querySelector('#overlay').textContent"))


def test_a_long_text_is_not_laid_out_anew_at_each_token(editor: Playground, handed: Handed) -> None:
    page = editor.page
    editor.write(LONG)
    page.evaluate(
        """() => {
            window.rewritten = 0;
            const area = document.querySelector("#text");
            const insert = area.setRangeText;
            area.setRangeText = function (...given) {
                window.rewritten += 1;
                return insert.apply(this, given);
            };
            window.changed = [];
            const watch = new MutationObserver((seen) => window.changed.push(...seen.map((one) =>
                one.target.textContent.length)));
            watch.observe(document.querySelector("#overlay"), {
                subtree: true, childList: true, characterData: true });
        }"""
    )
    page.keyboard.press("Control+Enter")
    for i in range(60):
        handed.give([" and", " then\n"][i % 2])
        editor.until(f"document.querySelector('#figures').textContent.startsWith('{i + 1} token')")
    # Each token is on the page at once, by the layout of one block.
    assert shown(page) == LONG + " and then\n" * 30
    assert max(page.evaluate("window.changed")) < 3000
    assert page.evaluate("window.rewritten") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('#text')).color") == (
        "rgba(0, 0, 0, 0)"
    )
    handed.end()
    editor.settle()
    assert editor.text == LONG + " and then\n" * 30
    assert page.evaluate("document.querySelector('#text').selectionStart") == len(editor.text)
    assert page.evaluate("window.rewritten") == 1


def test_the_text_area_follows_a_stream(editor: Playground, handed: Handed) -> None:
    """A reader who selects or copies during a stream gets all that is there."""
    page = editor.page
    editor.write(LONG)
    page.keyboard.press("Control+Enter")
    handed.give(" 🙂é")
    editor.until("document.querySelector('#figures').textContent.startsWith('1 token')")
    assert editor.text == LONG
    page.keyboard.press("Control+a")
    assert editor.text == f"{LONG} 🙂é"
    assert page.evaluate("getSelection().toString().length") == len(LONG) + 4
    # It never stays behind by more than a part of the text.
    handed.give("x" * len(LONG))
    editor.until(f"document.querySelector('#text').value.length > {2 * len(LONG)}")
    handed.give("!")
    handed.end()
    editor.settle()
    assert editor.text == f"{LONG} 🙂é{'x' * len(LONG)}!"


def test_choices_grow_by_what_is_new(editor: Playground, handed: Handed) -> None:
    page = editor.page
    editor.set("n", 2)
    editor.write("Once")
    page.keyboard.press("Control+Enter")
    text = page.locator(".choice-text").nth(1)
    handed.give(" upon", choice=1)
    expect(text).to_have_text(" upon", use_inner_text=False)
    page.evaluate("window.node = document.querySelectorAll('.choice-text')[1].firstChild")
    handed.give(" a time", choice=1)
    expect(text).to_have_text(" upon a time")
    assert page.evaluate("document.querySelectorAll('.choice-text')[1].firstChild === window.node")
    handed.end()
    editor.settle()
    # Other choices of the same number begin anew.
    page.keyboard.press("Escape")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    handed.give(" over", choice=1)
    expect(text).to_have_text(" over")
    handed.end()
    editor.settle()
