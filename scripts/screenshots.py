"""Pictures of the playground for the README: docs/images, from the embedded model.

The text is the model's own; the seeds are fixed, so that the pictures change when the page does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect

from e2e.browser import Playground, chromium, playground
from e2e.process import serving

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 390, "height": 780}
START = (
    "The lighthouse had been dark for eleven years when the keeper's daughter came back to the "
    "island. She carried a lamp, a letter,"
)


def write(desk: Playground) -> None:
    """A page with a text of the model's, and the card of one token."""
    desk.set("seed", 21)
    desk.set("temperature", 0.8)
    desk.set("max_tokens", 110)
    desk.page.keyboard.press("Escape")
    desk.write(START)
    desk.proceed()
    desk.page.evaluate("document.querySelector('#view').scrollTop = 0")


def point(desk: Playground) -> None:
    """Open the card of a token some words into the continuation."""
    place = len(START) + 1
    desk.page.evaluate(f"document.querySelector('#text').setSelectionRange({place}, {place})")
    for _ in range(6):
        desk.page.keyboard.press("Control+ArrowRight")
    expect(desk.page.locator("#card")).to_be_visible()


def wide(browser: Browser, url: str, scheme: str) -> None:
    """The page with probabilities, and the one with branches and choices."""
    with playground(browser, url, viewport=WIDE, color_scheme=scheme) as desk:
        write(desk)
        point(desk)
        shoot(desk, f"page-wide-{scheme}")
        desk.page.keyboard.press("Escape")
        desk.page.keyboard.press("Control+z")
        desk.set("n", 3)
        desk.set("max_tokens", 40)
        desk.page.focus("#text")
        desk.proceed()
        desk.view("branches")
        expect(desk.page.locator("#branches > li")).to_have_count(6)
        shoot(desk, f"choices-wide-{scheme}")


def narrow(browser: Browser, url: str, scheme: str) -> None:
    """The same on a telephone, and the settings drawn over it."""
    with playground(browser, url, viewport=NARROW, color_scheme=scheme, has_touch=True) as desk:
        write(desk)
        point(desk)
        shoot(desk, f"page-narrow-{scheme}")
        desk.page.keyboard.press("Escape")
        desk.view("settings")
        shoot(desk, f"settings-narrow-{scheme}")


def shoot(desk: Playground, name: str) -> None:
    """Write one picture."""
    expect(desk.page.locator("#count")).not_to_be_empty()
    desk.tints()
    desk.page.screenshot(path=IMAGES / f"{name}.png", caret="initial", animations="disabled")
    print(f"docs/images/{name}.png")


def main() -> None:
    """Every view, light and dark."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder, "stderr")
        with serving(errors, "--slots", "4") as server, chromium() as browser:
            for scheme in ("light", "dark"):
                wide(browser, server.url, scheme)
                narrow(browser, server.url, scheme)


if __name__ == "__main__":
    main()
