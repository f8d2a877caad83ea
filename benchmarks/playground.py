"""Measures the playground's typing latency and processor time by length and shape of the text.

A text area alone on a page is the peer. Needs Chromium, which `make test` installs. Run
`make typing`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page

import tests_path  # noqa: F401 - where support is
from e2e.browser import PATIENCE_MS, Playground, chromium, playground
from e2e.process import serving
from e2e.texts import branches_of

KEYS = 60
# The browser slows its own work down by this factor, to show what a slow machine does.
SLOWED = 4
# The message arrives after the work of the frame, when the frame is on its way to the screen.
MEASURE = """() => {
    window.latencies_ms = [];
    document.querySelector("#text").addEventListener("keydown", (event) => {
        requestAnimationFrame(() => {
            const { port1, port2 } = new MessageChannel();
            port1.onmessage = () => window.latencies_ms.push(performance.now() - event.timeStamp);
            port2.postMessage(null);
        });
    });
}"""


def measure(editor: Playground, place: int) -> list[float]:
    """Type keys at an offset. Returns their latencies in milliseconds, sorted."""
    page = editor.page
    page.evaluate("window.latencies_ms.length = 0")
    page.focus("#text")
    page.evaluate(f"document.querySelector('#text').setSelectionRange({place}, {place})")
    page.keyboard.press("ArrowLeft")
    editor.until("window.latencies_ms.length === 1")
    for i in range(KEYS):
        page.keyboard.type("the quick brown fox "[i % 20])
        editor.until(f"window.latencies_ms.length === {i + 2}")
    return sorted(page.evaluate("window.latencies_ms.slice(1)"))


LENGTH = 100_000
SENTENCE = "The quick brown fox jumps over the lazy dog. "
SHAPES: Mapping[str, str] = {
    "a sentence": SENTENCE,
    "paragraphs": f"{SENTENCE * 12}\n\n" * 200,
    "short lines": "a line\n" * (LENGTH // 7 + 1),
    "one paragraph": SENTENCE * (LENGTH // len(SENTENCE) + 1),
    "one word": "x" * LENGTH,
}
"""Texts of at most LENGTH characters."""
PASTED_KEYS = 20
FRAMES = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"""
ALONE = (
    "<textarea id=text style='width:41rem;height:40rem;font:19px/1.75 serif;"
    "overflow-wrap:break-word'></textarea>"
)


def spent_ms(browser: CDPSession) -> float:
    """Returns the processor time of the page's main thread."""
    metrics = browser.send("Performance.getMetrics")["metrics"]
    (spent_s,) = (float(each["value"]) for each in metrics if each["name"] == "TaskDuration")
    return spent_s * 1000


def processor_time(page: Page, text: str) -> tuple[float, float, float]:
    """Returns milliseconds of a paste, of a key at the end, and of a key in the middle."""
    browser = page.context.new_cdp_session(page)
    browser.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
    browser.send("Performance.enable")
    # A real paste: text that Playwright inserts makes an event of every line.
    page.evaluate(
        """(text) => {
            const box = document.body.appendChild(document.createElement("textarea"));
            box.value = text;
            box.select();
        }""",
        text,
    )
    page.keyboard.press("Control+c")
    page.evaluate("document.body.lastElementChild.remove()")
    page.focus("#text")
    page.evaluate(FRAMES)
    before = spent_ms(browser)
    page.keyboard.press("Control+v")
    page.evaluate(FRAMES)
    found = [spent_ms(browser) - before]
    if page.input_value("#text") != text:
        raise RuntimeError("the clipboard did not bring the text")
    for place in (len(text), len(text) // 2):
        page.evaluate(f"document.querySelector('#text').setSelectionRange({place}, {place})")
        page.keyboard.type("q")
        # What follows a pause in typing is not part of a key.
        page.wait_for_timeout(1500)
        before = spent_ms(browser)
        for key in SENTENCE[:PASTED_KEYS]:
            page.keyboard.type(key)
            page.evaluate(FRAMES)
        found.append((spent_ms(browser) - before) / PASTED_KEYS)
    paste, end, middle = found
    return paste, end, middle


@contextmanager
def alone(browser: Browser) -> Iterator[Page]:
    """A page with a text area of about the same look, and nothing else."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.set_content(ALONE)
    yield page
    context.close()


def shapes(browser: Browser, url: str) -> None:
    """Print a line for each shape of a long text: this page, and a text area alone, in turn."""
    for name, text in SHAPES.items():
        with playground(browser, url) as editor:
            ours = processor_time(editor.page, text[:LENGTH])
        with alone(browser) as page:
            theirs = processor_time(page, text[:LENGTH])
        told = (f"{mine:6.1f} ({its:5.1f})" for mine, its in zip(ours, theirs, strict=True))
        paste, end, middle = told
        print(
            f"{name:<13}: processor time in ms (a text area alone): paste {paste}, "
            f"a key at the end {end}, in the middle {middle}"
        )


def main() -> None:
    """Print a line for each length and place, and for each shape."""
    with tempfile.TemporaryDirectory() as folder:
        errors, file = Path(folder, "stderr"), Path(folder, "branches.json")
        with serving(errors, "--slots", "1") as server, chromium() as browser:
            shapes(browser, server.url)
            for tokens in (100, 1_000, 10_000, 30_000):
                file.write_text(json.dumps(branches_of(tokens)))
                with playground(browser, server.url) as editor:
                    editor.view("branches")
                    editor.page.set_input_files("#import-file", file)
                    editor.until("document.querySelector('#text').value.length > 400")
                    editor.page.evaluate(MEASURE)
                    slow = editor.page.context.new_cdp_session(editor.page)
                    for rate in (1, SLOWED):
                        slow.send("Emulation.setCPUThrottlingRate", {"rate": rate})
                        length = len(editor.text)
                        for name, place in (("end", length), ("middle", length // 2)):
                            found = measure(editor, place)
                            print(
                                f"{tokens:>6} tokens, typing at the {name:<6}, "
                                f"{'as it is' if rate == 1 else f'slowed {rate}x'}: "
                                f"median {statistics.median(found):5.1f} ms, "
                                f"95 % {found[int(KEYS * 0.95)]:5.1f} ms, worst {found[-1]:5.1f} ms"
                            )


if __name__ == "__main__":
    main()
