"""Take the pictures of the playground in docs/images, with the embedded model.

The model writes the texts. Seeds are fixed, so a picture changes only with the page.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect

from e2e.browser import Playground, chromium, playground
from e2e.process import serving

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 390, "height": 780}
# A busy machine writes a text of this length in half a minute.
PATIENCE_MS = 120_000
START = (
    "The lighthouse had been dark for eleven years when the keeper's daughter came back to the "
    "island. She carried a lamp, a letter,"
)


def write(editor: Playground) -> None:
    """Write a text and let the model continue it."""
    count = editor.page.locator("#count")
    editor.set("seed", 20)
    editor.set("temperature", 0.8)
    editor.set("min_p", 0)
    editor.set("max_tokens", 110)
    editor.page.evaluate(
        "for (const group of document.querySelectorAll('details')) group.open = false"
    )
    editor.page.keyboard.press("Escape")
    editor.write(START)
    expect(count).to_have_text(re.compile(r"^[1-9]"))
    before = count.inner_text()
    editor.proceed()
    expect(count).not_to_have_text(before)
    editor.page.evaluate("document.querySelector('#view').scrollTop = 0")


def point(editor: Playground) -> None:
    """Open the card of a token in the continuation."""
    place = len(START) + 1
    editor.page.evaluate(f"document.querySelector('#text').setSelectionRange({place}, {place})")
    for _ in range(6):
        editor.page.keyboard.press("Control+ArrowRight")
    expect(editor.page.locator("#card")).to_be_visible()


def wide(browser: Browser, url: str, scheme: str) -> None:
    """On a large screen: the page with probabilities, then choices with branches."""
    with playground(browser, url, viewport=WIDE, color_scheme=scheme) as editor:
        write(editor)
        point(editor)
        shoot(editor, f"page-wide-{scheme}")
        editor.page.keyboard.press("Escape")
        editor.page.keyboard.press("Control+z")
        editor.set("n", 3)
        editor.set("max_tokens", 40)
        editor.page.focus("#text")
        editor.proceed()
        editor.view("branches")
        expect(editor.page.locator("#branches > li")).to_have_count(6)
        shoot(editor, f"choices-wide-{scheme}")
        grow(editor)
        editor.page.keyboard.press("Alt+m")
        shoot(editor, f"map-wide-{scheme}")


def grow(editor: Playground) -> None:
    """Make a tree of some size: versions of versions, one of them bookmarked."""
    page = editor.page
    editor.set("n", 1)
    editor.set("max_tokens", 12)
    page.locator(".choice").nth(1).get_by_role("button").click()
    editor.proceed()
    page.keyboard.press("Alt+r")
    editor.settle()
    page.keyboard.press("Control+Shift+Enter")
    editor.settle()
    page.locator(".choice").nth(2).get_by_role("button").click()
    page.keyboard.press("Alt+b")
    editor.view("branches")


def narrow(browser: Browser, url: str, scheme: str) -> None:
    """On a phone: the page with probabilities, then the settings over it."""
    with playground(browser, url, viewport=NARROW, color_scheme=scheme, has_touch=True) as editor:
        write(editor)
        point(editor)
        shoot(editor, f"page-narrow-{scheme}")
        editor.page.keyboard.press("Escape")
        editor.view("settings")
        shoot(editor, f"settings-narrow-{scheme}")


def shoot(editor: Playground, name: str) -> None:
    """Save one picture, without the speed of this machine."""
    expect(editor.page.locator("#count")).not_to_be_empty()
    editor.tints()
    editor.page.evaluate("document.querySelector('#speed').textContent = ''")
    editor.page.screenshot(path=IMAGES / f"{name}.png", caret="initial", animations="disabled")
    print(f"docs/images/{name}.png")


def main() -> None:
    """Take every picture, light and dark."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder, "stderr")
        with serving(errors, "--slots", "4") as server, chromium() as browser:
            expect.set_options(timeout=PATIENCE_MS)
            for scheme in ("light", "dark"):
                wide(browser, server.url, scheme)
                narrow(browser, server.url, scheme)


if __name__ == "__main__":
    main()
