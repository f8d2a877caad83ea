"""Pages that are in no registry, if they are here: what they show is what the server sent.

Set ``AFTERWORD_PAGES`` to a folder with ``mikupad_compiled.html`` (of mikupad's releases) and
``lite.html`` (the ``index.html`` of lite.koboldai.net). Their requests are replayed without them,
in ``tests/e2e/test_pages.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Response

from afterword.engine.toy import toy_engine
from afterword.http.app import Access
from conftest import make_client
from e2e.browser import PATIENCE_MS, chromium
from e2e.test_pages import site_of
from support.http_server import http_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def file_of(name: str) -> Path:
    """A page of the folder. Skips the test without it."""
    folder = os.environ.get("AFTERWORD_PAGES")
    file = Path(folder or "/nowhere") / name
    if not file.is_file():
        pytest.skip(f"{name} is in no registry, and AFTERWORD_PAGES names no folder that has it")
    return file


def opened(browser: Browser, address: str) -> Page:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address, wait_until="domcontentloaded")
    return page


def sent(response: Response) -> str:
    """Returns the text that an answer has in all of its chunks."""
    lines = [line for line in response.text().splitlines() if line.startswith("data: {")]
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)


def is_completion(response: Response) -> bool:
    return response.url.endswith("/v1/completions") and response.request.method == "POST"


def field(label: str) -> str:
    """Returns a selector of mikupad's field with a label."""
    return f"label:has-text('{label}') >> input"


def test_mikupad(browser: Browser) -> None:
    """Opened from a file, so its origin is null."""
    file = file_of("mikupad_compiled.html")
    app = make_client({"toy": toy_engine()}, access=Access(origins=("null",), guarded=True)).app
    with http_server(app) as server:
        page = opened(browser, file.as_uri())
        page.select_option("label:has-text('API') >> select", label="OpenAI Compatible")
        page.fill(field("Server"), f"http://127.0.0.1:{server.port}/v1")
        page.fill(field("Model"), "toy")
        page.fill(field("Max Predict"), "12")
        page.fill("#prompt-area", "Once")
        with page.expect_response(is_completion) as caught:
            page.get_by_role("button", name="Predict", exact=True).click()
        text = sent(caught.value)
        assert caught.value.status == 200
        assert text
        page.wait_for_function(
            "(text) => document.querySelector('#prompt-area').value.endsWith(text)",
            arg=text.replace("\r\n", "\n").replace("\r", "\n"),
        )
        page.close()


def test_kobold_lite(browser: Browser, tmp_path: Path) -> None:
    """On a site of its own, as on the internet."""
    (tmp_path / "lite.html").write_bytes(file_of("lite.html").read_bytes())
    with site_of(tmp_path) as origin:
        access = Access(origins=(origin,), guarded=True)
        with http_server(make_client({"toy": toy_engine()}, access=access).app) as server:
            page = opened(browser, f"{origin}/lite.html")
            page.wait_for_function("typeof display_endpoint_container === 'function'")
            page.evaluate("display_endpoint_container()")
            page.evaluate(
                """(url) => {
                    const set = (id, value) => { document.getElementById(id).value = value; };
                    set("customapidropdown", "2");
                    customapi_dropdown();
                    set("custom_oai_endpoint", url);
                    set("custom_oai_key", "unused");
                    oai_fetch_models();
                }""",
                f"http://127.0.0.1:{server.port}/v1",
            )
            page.wait_for_function(
                "[...document.getElementById('custom_oai_model').options]"
                ".some((option) => option.value === 'toy')"
            )
            page.evaluate(
                """() => {
                    document.getElementById("custom_oai_model").value = "toy";
                    document.getElementById("useoaichatcompl").checked = false;
                    connect_custom_endpoint();
                }"""
            )
            with page.expect_response(is_completion) as caught:
                page.evaluate(
                    """() => {
                        localsettings.max_length = 12;
                        gametext_arr = ["Once upon"];
                        document.getElementById("input_text").value = " a time";
                        submit_generation_button(false);
                    }"""
                )
            text = sent(caught.value)
            assert caught.value.status == 200
            assert text
            page.wait_for_function("(text) => gametext_arr.at(-1).includes(text)", arg=text.strip())
            page.close()
