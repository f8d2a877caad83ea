"""The playground under bad conditions: keys, lost servers, hostile or long text, accessibility."""

from __future__ import annotations

import json
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from e2e.browser import Open, Playground
from e2e.process import MODEL, serving
from e2e.texts import branches_of

HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>\x1b[31mred\x1b[0m "
    "\u202eevil\u202c \u2066isolated\u2069 ${7*7} {{7*7}} </textarea><b>bold</b>"
)


def envelope(message: str, code: str) -> str:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return json.dumps({"error": error})


KEYED = ("/v1/**", "/tokenize", "/metrics", "/openapi.json")


def lock(page: Page, key: str, paths: Sequence[str] = KEYED) -> None:
    """Refuse requests without this key, as a server with keys does."""

    def check(route: Route) -> None:
        given = route.request.headers.get("authorization", "")
        if given == f"Bearer {key}":
            route.continue_()
            return
        words = "Incorrect API key provided: sk-ab***yz." if given else "You didn't provide a key."
        route.fulfill(
            status=401, content_type="application/json", body=envelope(words, "invalid_api_key")
        )

    for path in paths:
        page.context.route(f"**{path}", check)


def test_a_key_is_asked_for_and_kept_for_the_tab(visit: Open) -> None:
    editor = visit()
    page = editor.page
    lock(page, "sk-right")
    page.reload()
    dialog = page.locator("#key")
    expect(dialog).to_be_visible()
    expect(page.locator("#key-value")).to_be_focused()
    expect(page.locator("#key-error")).to_have_text("This server needs a key.")
    page.fill("#key-value", "sk-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-error")).to_contain_text("Incorrect API key provided: sk-ab***yz.")
    page.fill("#key-value", "sk-right")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    page.wait_for_selector("body[data-ready=true]")
    expect(page.locator("#model")).to_have_value(MODEL)
    editor.set("max_tokens", 4)
    editor.write("Hello")
    assert editor.proceed()
    # The key is in this tab only: not in lasting storage, not in a link, not in a snippet.
    assert page.evaluate("sessionStorage.getItem('afterword.key')") == "sk-right"
    assert "sk-right" not in page.evaluate("JSON.stringify(Object.entries(localStorage))")
    page.click("#share-open")
    code = page.inner_text("#share-code")
    assert "sk-right" not in code
    assert "$AFTERWORD_API_KEY" in code
    page.click("#share-link")
    expect(page.locator("#share-said")).not_to_be_empty()
    assert "sk-right" not in page.url
    page.click("#share-close")
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    expect(dialog).to_be_hidden()


def test_counting_leaves_half_of_the_requests_of_a_key(editor: Playground) -> None:
    page = editor.page
    asked: list[str] = []
    remaining = 5

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        limits = {"limit": "10", "remaining": str(remaining)}
        headers = {f"x-ratelimit-{what}-requests": value for what, value in limits.items()}
        response = route.fetch()
        route.fulfill(response=response, headers={**response.headers, **headers})

    page.route("**/tokenize", answer)
    count = page.locator("#count")
    editor.write("One")
    expect(count).to_have_text("1 of 8,192 tokens")
    remaining = 4
    editor.write(" two")
    expect(count).to_have_text("2 of 8,192 tokens")
    # Now it says nothing, and asks nothing.
    asked.clear()
    editor.write(" three")
    expect(count).to_have_text("")
    assert not asked
    # What the reader asks for is sent.
    editor.set("max_tokens", 1)
    assert editor.proceed()


@pytest.mark.parametrize("status", [429, 503])
def test_a_count_that_is_refused_for_now_is_no_news(editor: Playground, status: int) -> None:
    page = editor.page
    editor.write("One")
    expect(page.locator("#count")).to_have_text("1 of 8,192 tokens")
    words = envelope("Not now.", "rate_limit_exceeded")
    page.route("**/tokenize", lambda route: route.fulfill(status=status, body=words))
    editor.write(" two")
    expect(page.locator("#count")).to_have_text("")
    expect(page.locator("#notice")).to_be_hidden()


def test_a_key_without_a_model_is_said(editor: Playground) -> None:
    page = editor.page
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.reload()
    notice = page.locator("#notice")
    expect(notice).to_contain_text("This server has no model for you.")
    page.click("#notice .remove")
    editor.write("Hello")
    page.keyboard.press("Control+Enter")
    expect(notice).to_contain_text("This server has no model for you.")
    assert editor.text == "Hello"


def test_no_key_given_is_said(visit: Open) -> None:
    editor = visit()
    page = editor.page
    editor.write("Hello")
    # From here on the page asks for nothing by itself.
    expect(page.locator("#count")).to_have_text("1 of 8,192 tokens")
    lock(page, "sk-right")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_contain_text("You didn't provide a key.")
    expect(page.locator("#notice")).to_contain_text("Enter another key")
    assert editor.text == "Hello"


def test_the_server_goes_and_comes_back(visit: Open, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("--model", f"{MODEL}={tiny_model}", "--slots", "2")
    with serving(tmp_path / "first", *arguments) as first:
        editor = visit(first.url)
        page = editor.page
        editor.set("max_tokens", 8000)
        page.evaluate("document.querySelector('#field-ignore_eos').click()")
        editor.write("It was")
        page.keyboard.press("Control+Enter")
        # The page draws more slowly than a tiny model writes, so the server is asked.
        while first.figure("generated_tokens_total") < 200:
            pass
        first.stop(signal.SIGKILL)
        editor.until("document.querySelector('#text').value.length > 60")
        notice = page.locator("#notice")
        expect(notice).to_contain_text("The server does not answer.")
        editor.settle()
        kept = editor.text
        assert len(kept) > 60
        page.keyboard.press("Control+Enter")
        expect(notice).to_contain_text("Your text is safe here.")
        assert editor.text == kept
        port = first.port
    with serving(tmp_path / "second", *arguments, "--port", str(port)):
        expect(notice).to_contain_text("The server is back.")
        # Three tokens of a tiny model may be parts of one character.
        editor.set("max_tokens", 20)
        page.focus("#text")
        assert editor.proceed()
        assert editor.text.startswith(kept)


def test_an_answer_that_breaks_off(editor: Playground) -> None:
    chunk = {"choices": [{"text": " half", "index": 0, "logprobs": None, "finish_reason": None}]}
    editor.page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\n"
        ),
    )
    editor.write("One")
    editor.page.keyboard.press("Control+Enter")
    expect(editor.page.locator("#notice")).to_contain_text("The answer broke off.")
    assert editor.text == "One half"


def test_a_reload_amid_a_stream_keeps_what_the_model_wrote(editor: Playground) -> None:
    page = editor.page
    editor.set("max_tokens", 8000)
    page.evaluate("document.querySelector('#field-ignore_eos').click()")
    editor.write("It was")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    editor.until("document.querySelector('#text').value.length > 60")
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    # It is the model's: it has its tints, and another version can be written.
    text = editor.text
    assert len(text) > 60
    assert editor.tints()
    expect(page.locator("#regenerate")).to_be_enabled()
    assert len(editor.branches()) == 3
    # Each of several versions is kept.
    editor.set("n", 2)
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".choice-text")
    editor.until(
        "[...document.querySelectorAll('.choice-text')].every((each) => each.textContent !== '')"
    )
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    assert editor.text == text
    assert len(editor.branches()) == 5


def test_a_failure_amid_a_stream(editor: Playground) -> None:
    body = f"data: {envelope('The engine failed. (request id req_1)', 'x')}\n\n"
    editor.page.route(
        "**/v1/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    editor.write("One")
    editor.page.keyboard.press("Control+Enter")
    expect(editor.page.locator("#notice")).to_contain_text("The engine failed. (request id req_1)")


REFUSALS = {
    "engine_overloaded": (503, "Try again in 7 s."),
    "rate_limit_exceeded": (429, "Your key has reached its rate limit."),
    "insufficient_quota": (429, "Ask the operator"),
    "model_not_found": (404, "Choose another model"),
}


def test_refusals_say_what_to_do(editor: Playground) -> None:
    editor.write("One")
    refusals: list[Callable[[Route], None]] = []

    def refuse(route: Route) -> None:
        refusals[-1](route)

    # One route for all: while routes change, a request could reach the server.
    editor.page.route("**/v1/completions", refuse)
    for code, (status, advice) in REFUSALS.items():
        refusals.append(refusing(status, envelope("No.", code)))
        editor.page.keyboard.press("Control+Enter")
        expect(editor.page.locator("#notice")).to_contain_text(advice)
        assert editor.text == "One"


def refusing(status: int, body: str) -> Callable[[Route], None]:
    headers = {"retry-after": "7", "content-type": "application/json"}
    return lambda route: route.fulfill(status=status, body=body, headers=headers)


def spoken(text: str, index: int = 0) -> list[dict[str, Any]]:
    """Returns the chunks of a text, streamed by character."""
    chunks = []
    for offset, character in enumerate(text):
        logprobs = {
            "tokens": [character],
            "token_logprobs": [-0.5],
            "top_logprobs": [{character: -0.5, f"<i>{character}": -1.5}],
            "text_offset": [offset],
        }
        reason = "stop" if offset == len(text) - 1 else None
        choice = {"text": character, "index": index, "logprobs": logprobs, "finish_reason": reason}
        chunks.append({"choices": [choice]})
    return chunks


def test_hostile_output_stays_text(visit: Open) -> None:
    editor = visit()
    page = editor.page
    frames = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in spoken(HOSTILE))
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"{frames}data: [DONE]\n\n"
        ),
    )
    bar = page.locator("header.bar").bounding_box()
    elements = page.evaluate(
        "document.querySelectorAll('script, img, b, i:not([data-step])').length"
    )
    editor.proceed()
    assert editor.text == HOSTILE
    # The card, the branches, their names, the comparison and the token view show it as text.
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#card")).to_be_visible()
    editor.view("branches")
    rows = page.locator("#branches > li")
    rows.last.focus()
    page.keyboard.press("F2")
    page.keyboard.insert_text(HOSTILE[:60])
    page.keyboard.press("Enter")
    expect(rows.last.locator("strong")).to_have_text(HOSTILE[:60])
    page.keyboard.press("c")
    page.keyboard.press("Home")
    page.keyboard.press("c")
    expect(page.locator("#comparison")).to_be_visible()
    page.keyboard.press("Escape")
    editor.view("tokens")
    expect(page.locator(".token-list .token").first).to_be_visible()
    page.click("#share-open")
    expect(page.locator("#share-code")).to_contain_text("<script>")
    page.click("#share-close")
    assert page.evaluate("window.pwned") is None
    now = page.evaluate("document.querySelectorAll('script, img, b, i:not([data-step])').length")
    assert now == elements
    # Bidirectional marks change nothing outside the text.
    assert page.locator("header.bar").bounding_box() == bar
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#text')).unicodeBidi")
        == "plaintext"
    )


def test_the_policy_forbids_what_hostile_text_would_need(editor: Playground) -> None:
    blocked = editor.page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
            const script = document.createElement("script");
            try { script.text = "window.pwned = 1"; } catch { done("trusted types"); }
            document.body.append(script);
        })"""
    )
    assert blocked in {"script-src-elem", "require-trusted-types-for", "trusted types"}
    assert editor.page.evaluate("window.pwned") is None
    editor.complaints.clear()


def test_ten_thousand_tokens(editor: Playground, tmp_path: Path) -> None:
    page = editor.page
    file = tmp_path / "long.json"
    file.write_text(json.dumps(branches_of(10_000)))
    editor.view("branches")
    page.set_input_files("#import-file", file)
    editor.until("document.querySelector('#text').value.length > 60000")
    expect(page.locator("#figures")).to_contain_text("10,000 tokens")
    # Only the part in view is painted.
    painted = sum(editor.tints().values())
    assert 50 < painted < 1500
    nodes = page.evaluate("document.querySelectorAll('*').length")
    assert nodes < 900
    page.focus("#text")
    page.keyboard.press("Control+End")
    # Below the last line is no room, so the card is above it.
    expect(page.locator("#card")).to_be_visible()
    card, view = (page.locator(name).bounding_box() for name in ("#card", "#view"))
    assert card is not None
    assert view is not None
    assert view["y"] <= card["y"]
    assert card["y"] + card["height"] <= view["y"] + view["height"]
    page.keyboard.type("and so on")
    assert editor.text.endswith("and so on")
    assert 50 < sum(editor.tints().values()) < 1500
    # A change in the middle invalidates what follows; undo makes it valid again.
    page.evaluate("document.querySelector('#text').setSelectionRange(30000, 30000)")
    page.keyboard.type("x")
    expect(page.locator("#figures")).not_to_contain_text("10,000")
    page.keyboard.press("Control+z")
    expect(page.locator("#figures")).to_contain_text("10,000 tokens")
    expect(page.locator("#count")).to_contain_text("of 8,192 tokens")


# Random edits of an overlay. After each, the layout equals that of the text in one block.
EDITS = """async () => {
    const { Overlay } = await import("/playground/overlay.js");
    const [box, whole] = ["overlay", "overlay"].map((name) => {
        const element = document.createElement("div");
        element.className = name;
        element.style.width = "400px";
        document.querySelector("#view").prepend(element);
        return element;
    });
    // Paragraphs have their own direction here, also while the text has one direction only.
    whole.dataset.bidi = "";
    const line = whole.appendChild(document.createElement("div"));
    const overlay = new Overlay(box);
    let state = 7;
    const draw = (below) => {
        state = (state * 48271) % 2147483647;
        return state % below;
    };
    const parts = ["word ", "\\n", "\\n\\n", "\\tlong".repeat(30), "אב ", "🦜", "    ",
        "line\\n".repeat(300), "no end ".repeat(400)];
    const [wrong, most] = [[], { blocks: 0 }];
    let text = "";
    for (let i = 0; i < 120; i += 1) {
        // Edits also hit places where one block ends and the next begins.
        const edges = [...box.children].map((block) => block.textContent.length);
        for (let j = 1; j < edges.length; j += 1) edges[j] += edges[j - 1];
        const edge = Math.max(0, edges[draw(edges.length)] - draw(2));
        const at = [text.length, draw(text.length + 1), edge][draw(3)];
        const gone = [0, 1, 1, 3, draw(3000)][draw(5)];
        text = text.slice(0, at) + parts[draw(parts.length)] + text.slice(at + gone);
        overlay.show(text);
        line.textContent = text;
        const blocks = [...box.children].map((block) => block.textContent);
        most.blocks = Math.max(most.blocks, blocks.length);
        if (blocks.join("") !== text) wrong.push([i, "text"]);
        if (!blocks.slice(0, -1).every((block) => block.endsWith("\\n"))) wrong.push([i, "ends"]);
        if (box.offsetHeight !== whole.offsetHeight) wrong.push([i, "height"]);
        const [here, there] = [box.getBoundingClientRect(), whole.getBoundingClientRect()];
        const range = document.createRange();
        for (let j = 0; j < 5 && text !== ""; j += 1) {
            const offset = draw(text.length);
            range.setStart(line.firstChild, offset);
            range.setEnd(line.firstChild, offset + 1);
            const [mine] = overlay.rects(offset, offset + 1);
            const [its] = range.getClientRects();
            const same = Math.abs(mine.left - here.left - its.left + there.left) < 0.1
                && Math.abs(mine.top - here.top - its.top + there.top) < 0.1;
            if (!same) wrong.push([i, "place", offset]);
            const first = overlay.offsetBelow(mine.top);
            const [found] = overlay.rects(first, first + 1);
            if (first > offset || found.bottom <= mine.top) wrong.push([i, "below", offset, first]);
        }
    }
    box.remove();
    whole.remove();
    return [wrong, most.blocks];
}"""


def test_blocks_are_laid_out_as_one_text(editor: Playground) -> None:
    wrong, blocks = editor.page.evaluate(EDITS)
    assert wrong == []
    assert blocks > 5
    # The overlay gives the text area its height, including final empty lines.
    editor.write("a\n" * 60 + "\n\n")
    assert (
        editor.page.evaluate(
            """() => {
            const { scrollHeight, clientHeight } = document.querySelector("#text");
            return scrollHeight - clientHeight;
        }"""
        )
        <= 1
    )


def test_line_ends_of_other_systems(editor: Playground) -> None:
    frames = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in spoken("a\r\nb\rc"))
    editor.page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"{frames}data: [DONE]\n\n"
        ),
    )
    editor.proceed()
    assert editor.text == "a\nb\nc"
    assert sum(editor.tints().values()) == 5


def test_chinese(visit: Open) -> None:
    """The page speaks the browser's language until the reader chooses one, which it keeps."""
    editor = visit(locale="zh-CN")
    page = editor.page
    assert page.get_attribute("html", "lang") == "zh-Hans"
    expect(page.locator("#continue")).to_contain_text("续写")
    page.click("#look-open")
    page.select_option("#language", "en")
    page.keyboard.press("Escape")
    assert page.get_attribute("html", "lang") == "en"
    expect(page.locator("#continue")).to_contain_text("Continue")
    expect(page.locator("label[for=field-temperature]")).to_have_text("Temperature")
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    expect(page.locator("#continue")).to_contain_text("Continue")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tints_can_be_read(visit: Open, scheme: str) -> None:
    """Text on every tint has AA contrast, and lightness alone orders the steps."""
    editor = visit(color_scheme=scheme)
    ink, *tints = editor.page.evaluate(
        """() => {
            const pen = new OffscreenCanvas(1, 1).getContext("2d");
            const style = getComputedStyle(document.documentElement);
            return ["--ink", ...Array.from({ length: 8 }, (_, i) => `--tint-${i}`)].map((name) => {
                pen.fillStyle = style.getPropertyValue(name);
                pen.fillRect(0, 0, 1, 1);
                return [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            });
        }"""
    )
    shades = [luminance(tint) for tint in tints]
    for shade in shades:
        low, high = sorted((shade, luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert shades == sorted(shades, reverse=scheme == "light")
    assert len(set(shades)) == len(shades)


def luminance(colour: list[int]) -> float:
    """Relative luminance as WCAG defines it."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (byte / 255 for byte in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def findings(page: Page) -> list[str]:
    """Returns the findings of axe-core that are more than minor."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found
        if rule["impact"] != "minor"
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        ("light", (1280, 800)),
        ("dark", (1280, 800)),
        ("light", (390, 800)),
        ("dark", (390, 800)),
    ],
)
def test_nothing_serious_for_axe(visit: Open, scheme: str, size: tuple[int, int]) -> None:
    width, height = size
    editor = visit(color_scheme=scheme, viewport={"width": width, "height": height})
    page = editor.page
    editor.set("max_tokens", 8)
    editor.set("seed", 2)
    editor.set("stop", "zq")
    page.keyboard.press("Enter")
    editor.view("settings")
    page.evaluate("for (const group of document.querySelectorAll('details')) group.open = true")
    assert findings(page) == []
    page.keyboard.press("Escape")
    editor.write("The sea was")
    editor.proceed()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#card")).to_be_visible()
    assert findings(page) == []
    for view in ("branches", "tokens", "server"):
        editor.view(view)
        assert findings(page) == []
    page.keyboard.press("Escape")
    page.click("#share-open")
    assert findings(page) == []


def test_small_screens(visit: Open) -> None:
    """The panel is a drawer, and nothing is wider than the screen."""
    editor = visit(viewport={"width": 360, "height": 640}, has_touch=True)
    page = editor.page
    panel = page.locator("#panel")
    expect(panel).to_be_hidden()
    page.click("#panel-toggle")
    expect(panel).to_be_visible()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(page.locator("#panel-toggle")).to_be_focused()
    editor.set("max_tokens", 6)
    page.keyboard.press("Escape")
    editor.write("The sea was")
    editor.proceed()
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # The last button of the bar stands in the row of the model.
    middles = [
        page.locator(name).evaluate(
            "(e) => (({ top, bottom }) => top + bottom)(e.getBoundingClientRect())"
        )
        for name in ("#model", "#look-open")
    ]
    assert middles[0] == pytest.approx(middles[1], abs=4)
    expect(page.locator("#continue")).to_be_in_viewport()
    page.click("#text")
    expect(page.locator("#card")).to_be_visible()
    box = page.locator("#card").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_the_keyboard_reaches_everything(editor: Playground) -> None:
    page = editor.page
    page.focus(".skip")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:8] == [
        "documents-open", "model", "new", "share-open", "look-open", "keys-open", "panel-toggle",
        "text",
    ]  # fmt: skip
    assert "tab-settings" in reached
    page.focus("#tab-settings")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#view-branches")).to_be_visible()
    expect(page.locator("#tab-branches")).to_be_focused()


@contextmanager
def asked_again(url: str) -> Iterator[None]:
    """Has a client ask one request after another: a single answer may end before the page looks."""
    body = {"model": MODEL, "prompt": "Long ago", "max_tokens": 2000, "ignore_eos": True}
    request = urllib.request.Request(  # noqa: S310 - loopback
        urljoin(url, "/v1/completions"),
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - loopback
                answer.read()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            stop.set()
    asking.result()


def test_the_live_view_moves(visit: Open) -> None:
    # A tab of its own, because the test replaces its clock.
    editor = visit()
    page = editor.page
    page.clock.install()
    editor.view("server")
    value = page.locator(".live-value")
    expect(value.nth(0)).to_have_text("0")
    # A screen reader does not announce figures that change each second.
    expect(page.locator(".live-value:not([aria-live=off])")).to_have_count(0)
    with asked_again(page.url):
        expect(value.nth(0)).to_have_text("1")
        expect(value.nth(2)).not_to_have_text("0.0")
        expect(value.nth(3)).to_have_text(re.compile(r"^[1-9][0-9,]* of [0-9,]{6,}$"))
    editor.settle()
    expect(value.nth(0)).to_have_text("0")
    drawn = page.evaluate(
        """() => [...document.querySelectorAll(".live-plot")].map((canvas) => {
            const pen = canvas.getContext("2d");
            return pen.getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean);
        })"""
    )
    assert drawn[0]
    assert drawn[2]
    # A hidden view sends no requests.
    editor.view("settings")
    scrapes = sum(url.endswith("/metrics") for url in editor.requests)
    page.clock.fast_forward(10_000)
    assert sum(url.endswith("/metrics") for url in editor.requests) == scrapes


def test_a_full_disk_is_said_once_and_what_was_not_kept_is_kept_later(editor: Playground) -> None:
    page = editor.page
    page.evaluate(
        """() => {
            window.put = IDBObjectStore.prototype.put;
            window.failed = 0;
            IDBObjectStore.prototype.put = () => {
                window.failed += 1;
                throw new DOMException("no room", "QuotaExceededError");
            };
        }"""
    )
    editor.write("First.")
    expect(page.locator("#notice")).to_contain_text("no room")
    page.evaluate("document.querySelector('#notice').replaceChildren()")
    failed = page.evaluate("window.failed")
    editor.write(" Second.")
    editor.until(f"window.failed > {failed}")
    expect(page.locator("#notice")).to_be_empty()
    page.evaluate("() => { IDBObjectStore.prototype.put = window.put; }")
    editor.write(" Third.")
    editor.until(
        """new Promise((done) => {
            const asked = indexedDB.open("afterword", 2);
            asked.onsuccess = () => {
                const all = asked.result.transaction("documents").objectStore("documents").getAll();
                all.onsuccess = () => {
                    asked.result.close();
                    done(all.result.some(({ page }) => page.text === "First. Second. Third."));
                };
            };
        })"""
    )
