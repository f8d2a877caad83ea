"""The playground in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip
# A wait takes milliseconds on an idle machine. On a busy one it takes what it takes.
PATIENCE_MS = 120_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, which ``make test`` installs."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program is not None, "there is no chromium; on Debian and Ubuntu: apt install chromium"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Playground:
    """The page, with the actions of a reader. ``complaints`` are errors of the console."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.page.input_value("#text")

    def write(self, text: str) -> None:
        """Type at the end of the text."""
        self.page.focus("#text")
        self.page.keyboard.press("Control+End")
        self.page.keyboard.insert_text(text)

    def set(self, name: str, value: object) -> None:
        """Set the value of a field. Opens its group if it is closed."""
        self.view("settings")
        box = self.page.locator(f"#field-{name}")
        box.evaluate("(e) => e.closest('details')?.setAttribute('open', '')")
        box.fill(str(value))

    def view(self, name: str) -> None:
        """Open a view of the panel if it is closed."""
        if self.page.get_attribute("#panel-toggle", "aria-expanded") == "false":
            self.page.click("#panel-toggle")
        if self.page.get_attribute(f"#tab-{name}", "aria-selected") == "false":
            self.page.click(f"#tab-{name}")

    def proceed(self) -> str:
        """Continue, and wait for the end. Returns the added text."""
        before = len(self.text)
        self.page.keyboard.press("Control+Enter")
        self.settle()
        return self.text[before:]

    def settle(self) -> None:
        """Wait until no request runs, and what it gave is drawn."""
        expect(self.page.locator("body")).to_have_attribute("data-running", "")
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def until(self, condition: str) -> None:
        """Wait for a condition in the page. Its policy forbids Playwright's own way."""
        self.page.evaluate(
            f"""() => new Promise((done) => {{
                const look = async () => {{
                    if (await ({condition})) done();
                    else requestAnimationFrame(look);
                }};
                look();
            }})"""
        )

    def score(self) -> None:
        self.page.click("#score")
        self.settle()

    def tints(self) -> dict[int, int]:
        """Returns the number of painted ranges of each step, after the next frame."""
        found: dict[int, int] = {}
        for step, count in self.page.evaluate(
            """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
                () => done([...CSS.highlights].filter(([name]) => name.startsWith("tint-"))
                    .map(([name, ranges]) => [parseInt(name.slice(5)), ranges.size])))))"""
        ):
            # Each step has two variants, for neighbours.
            found[step] = found.get(step, 0) + count
        return found

    def branches(self) -> list[str]:
        self.view("branches")
        return self.page.locator("#branches > li .branch-words").all_inner_texts()


@contextmanager
def playground(browser: Browser, url: str, **options: Any) -> Iterator[Playground]:
    """A tab without stored data. At its end the console must have no errors."""
    given = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **options}
    context = browser.new_context(**given)
    context.set_default_timeout(PATIENCE_MS)
    tab = Playground(context.new_page())
    watch(tab)
    arrive(tab, url)
    yield tab
    context.close()
    assert tab.complaints == []


def arrive(tab: Playground, url: str) -> None:
    """Open the page and wait until it is ready."""
    tab.page.goto(url)
    tab.page.wait_for_selector("body[data-ready=true]")


def forget(tab: Playground, url: str) -> None:
    """Leave the page, and remove everything that it or a test put into the tab."""
    page = tab.page
    page.unroute_all()
    page.context.unroute_all()
    # The page keeps a draft when it goes, so the clearing begins on a path without scripts.
    page.goto(f"{url}/health")
    page.evaluate("sessionStorage.clear(); localStorage.clear()")
    page.goto("about:blank")
    browser = page.context.new_cdp_session(page)
    browser.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
    browser.detach()
    tab.complaints.clear()
    tab.requests.clear()


def watch(tab: Playground) -> None:
    """Record errors and requests of the page."""

    def listen(message: Any) -> None:
        # The browser reports every refused or failed request. The page shows these itself.
        if message.type == "error" and "Failed to load resource" not in message.text:
            tab.complaints.append(message.text)

    tab.page.on("console", listen)
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.page.on("request", lambda request: tab.requests.append(request.url))


Open = Callable[..., Playground]
