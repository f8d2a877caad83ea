"""``/docs`` in a browser, on a server with keys."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from e2e.browser import PATIENCE_MS, Playground, watch
from e2e.process import run, serving
from e2e.test_playground_care import findings


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_is_asked_for_the_key(
    browser: Browser, tiny_model: Path, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    ledger = ("--data-dir", str(tmp_path / "data"))
    made = run("keys", "create", "one", *ledger)
    (secret,) = [word for word in made.stdout.split() if word.startswith("sk-")]
    arguments = ("--model", f"hidden-name={tiny_model}", "--slots", "1", *ledger)
    context = browser.new_context(locale="en-US", color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    tab = Playground(context.new_page())
    watch(tab)
    page = tab.page
    with serving(tmp_path / "stderr", *arguments) as server:
        assert httpx2.get(f"{server.url}/docs").status_code == 401
        reply = page.goto(f"{server.url}/docs")
        assert reply is not None
        assert reply.status == 200
        expect(page.locator("#key")).to_be_visible()
        expect(page.locator("#key-error")).to_have_text("This server needs a key.")
        assert "hidden-name" not in page.content()
        assert findings(page) == []
        # Without a key the page says why it is empty, and asks again.
        page.keyboard.press("Escape")
        expect(page.locator("#notice")).to_contain_text("You didn't provide an API key")
        page.get_by_role("button", name="Try again").click()
        page.fill("#key-value", "sk-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("Incorrect API key provided")
        page.fill("#key-value", secret)
        page.keyboard.press("Enter")
        expect(page.locator("#reference")).to_contain_text("POST /v1/completions")
        expect(page.locator("#reference dt").filter(has_text="temperature").first).to_be_visible()
        expect(page.locator("#notice")).to_be_hidden()
        assert findings(page) == []
        assert page.url == f"{server.url}/docs"
        assert secret not in page.content()
        # The tab keeps the key, for the playground, too.
        page.reload()
        expect(page.locator("#reference")).to_contain_text("POST /v1/completions")
        expect(page.locator("#key")).to_be_hidden()
        page.goto(server.url)
        expect(page.locator("#model")).to_have_value("hidden-name")
    context.close()
    assert tab.complaints == []
