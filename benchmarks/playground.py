"""Measures the playground's typing latency, from a key to its frame, by length of the text.

Needs Chromium, which `make test` installs. Run `make typing`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import tests_path  # noqa: F401 - where support is
from e2e.browser import Playground, chromium, playground
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


def main() -> None:
    """Print a line for each length and place."""
    with tempfile.TemporaryDirectory() as folder:
        errors, file = Path(folder, "stderr"), Path(folder, "branches.json")
        with serving(errors, "--slots", "1") as server, chromium() as browser:
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
