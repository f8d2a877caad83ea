"""The playground for writers: the caret, versions, gaps, a quiet look, honest numbers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Request, Route, expect

from e2e.browser import Playground, arrive, forget, playground
from e2e.process import Server, serving
from support.tiny_gguf import make_gguf

START = "Once upon a time, in a village by the sea,"
TOKENS = 5


def caret(editor: Playground, offset: int) -> None:
    editor.page.focus("#text")
    editor.page.evaluate(
        "(at) => document.querySelector('#text').setSelectionRange(at, at)", offset
    )


def sent(editor: Playground) -> list[dict[str, Any]]:
    """Returns a list that gets the body of every completion from now on."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/completions"):
            bodies.append(json.loads(request.post_data or ""))

    editor.page.on("request", note)
    return bodies


@pytest.fixture
def written(editor: Playground) -> Playground:
    """A page with a continuation of ``TOKENS`` tokens."""
    editor.set("seed", 7)
    editor.set("max_tokens", TOKENS)
    editor.write(START)
    assert editor.proceed()
    return editor


def test_an_empty_page_offers_beginnings(editor: Playground) -> None:
    """With the few settings that matter. The first key hides them, an empty text shows them."""
    page = editor.page
    start = page.locator("#start")
    expect(start).to_contain_text("It is not a chat")
    expect(page.locator(".how-card")).to_be_visible()
    expect(page.locator(".beginning")).to_have_count(6)
    # The gap is offered where the model can fill it.
    fills = page.evaluate(
        """fetch("/v1/models").then((reply) => reply.json())
            .then(({ data: [model] }) => model.afterword.suffix)"""
    )
    assert page.locator("[data-beginning=gap]").is_enabled() == fills
    assert page.locator("#gap").is_visible() == fills
    # What matters shows; everything else is folded, and has a name of its field.
    fields = page.locator("#controls > .group:first-child .field")
    names = fields.evaluate_all("(all) => all.map((field) => field.dataset.field)")
    assert names == ["temperature", "max_tokens", "stop"]
    assert page.locator("#controls details[open]").count() == 0
    folded = page.locator("#controls summary").all_inner_texts()
    assert folded[1:6] == ["Sampling", "Penalties", "Choices", "Logprobs", "Infill"]
    assert page.input_value("#field-temperature") == "0.8"
    assert page.input_value("#field-min_p") == "0.05"
    page.keyboard.type("A")
    expect(start).to_be_hidden()
    page.keyboard.press("Backspace")
    expect(start).to_be_visible()
    editor.set("max_tokens", 3)
    page.click("[data-beginning=story]")
    editor.settle()
    expect(start).to_be_hidden()
    assert editor.text.startswith("The lighthouse had been dark")
    assert sum(editor.tints().values()) == 3
    page.click("#new")
    expect(start).to_be_visible()
    page.click("[data-beginning=score]")
    editor.settle()
    assert editor.text.endswith("the shore.")
    assert sum(editor.tints().values()) > 5


def test_every_button_has_a_tooltip_and_a_question_mark_shows_the_keys(written: Playground) -> None:
    page = written.page
    page.keyboard.press("ArrowLeft")
    written.view("branches")
    untold = page.evaluate(
        """() => [...document.querySelectorAll("button")].filter((button) => button.title === "")
            .map((button) => button.outerHTML)"""
    )
    assert untold == []
    assert page.get_attribute("#continue", "title") == (
        "Continue from the caret; what follows stays in its branch (Ctrl ↵)"
    )
    page.focus("#panel-toggle")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    expect(page.locator("#shortcut-list")).to_contain_text("Alt R")
    page.keyboard.press("Escape")
    # In a text it is a question mark.
    page.focus("#text")
    page.keyboard.press("Control+End")
    page.keyboard.type("?")
    assert written.text.endswith("?")
    expect(page.locator("#shortcuts")).to_be_hidden()


def test_what_is_shown_is_what_is_sent(editor: Playground) -> None:
    page = editor.page
    bodies = sent(editor)
    editor.set("max_tokens", 2)
    editor.write("One")
    wrong = {
        "temperature": (5, "A number from 0 to 2.", 0.5),
        "n": (200, "A whole number from 1 to 128.", 2),
        "best_of": (1, "A whole number, at least n (2).", 2),
        "min_tokens": (3, "At most “Max tokens” (2).", 1),
    }
    for name, (bad, message, good) in wrong.items():
        editor.set(name, bad)
        page.focus("#text")
        page.keyboard.press("Control+Enter")
        expect(page.locator(f"#error-{name}")).to_have_text(message)
        expect(page.locator(f"#field-{name}")).to_be_focused()
        # A copied request would not be what is shown either.
        page.click("#share-open")
        expect(page.locator("#share")).to_be_hidden()
        editor.set(name, good)
    assert bodies == []
    # Typed and not added is shown, so it is sent.
    page.fill("#field-stop", "zq")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".choice")).to_have_count(2)
    editor.settle()
    (body,) = bodies
    assert {name: body[name] for name in wrong} == {
        name: good for name, (*_, good) in wrong.items()
    }
    assert body["stop"] == ["zq"]


def test_continue_goes_on_from_the_caret(written: Playground) -> None:
    page, whole = written.page, written.text
    label = page.locator("#continue-words")
    expect(label).to_have_text("Continue")
    bodies = sent(written)
    caret(written, len(START))
    expect(label).to_have_text("Continue here")
    written.set("seed", 8)
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    written.settle()
    other = written.text
    assert bodies[0]["prompt"] == START
    assert "suffix" not in bodies[0]
    assert other.startswith(START)
    assert other != whole
    # What followed the caret is the branch that it was, one key away.
    expect(page.locator("#walk-where")).to_have_text("2\u2009/\u20092")
    page.keyboard.press("Alt+ArrowLeft")
    assert written.text == whole
    page.click("#walk-next")
    assert written.text == other
    page.keyboard.press("Control+z")
    assert written.text == whole


def test_regenerate_and_siblings(written: Playground) -> None:
    page, first = written.page, written.text
    page.keyboard.press("Alt+r")
    written.settle()
    second = written.text
    assert second.startswith(START)
    assert second != first
    # The same seed would write the same, so the next one is shown and sent.
    assert page.input_value("#field-seed") == "8"
    page.click("#regenerate")
    written.settle()
    third = written.text
    page.focus("#text")
    for expected in (second, first, third):
        page.keyboard.press("Alt+ArrowLeft")
        assert written.text == expected
    page.keyboard.press("Alt+ArrowRight")
    assert written.text == first
    page.keyboard.press("Alt+ArrowUp")
    assert written.text == START
    expect(page.locator("#regenerate")).to_be_disabled()
    # A token that the reader took stays in every version.
    page.keyboard.press("Control+z")
    caret(written, len(START) + 1)
    page.keyboard.press("ArrowLeft")
    taken = page.locator("#card button.bar:not([disabled])").first
    token = taken.locator(".bar-token").inner_text().replace("·", " ")
    taken.click()
    written.settle()
    page.keyboard.press("Alt+r")
    written.settle()
    assert written.text.startswith(START + token)
    rows = page.locator("#branches > li[aria-level='3']")
    expect(rows).to_have_count(5)
    # Several versions of what comes next.
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator(".choice")).to_have_count(3)
    written.settle()
    expect(page.locator("#branches > li[aria-level='4']")).to_have_count(3)


@pytest.fixture(scope="module")
def coder(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Playground, Server]]:
    """A tab on a server whose model can fill gaps, which the embedded model cannot."""
    folder = tmp_path_factory.mktemp("coder")
    model = make_gguf(folder / "coder.gguf", "qwen", context=2048)
    with (
        serving(folder / "stderr", "--model", f"coder={model}", "--slots", "4") as served,
        playground(browser, served.url) as tab,
    ):
        yield tab, served


@pytest.fixture
def filler(coder: tuple[Playground, Server]) -> Playground:
    tab, served = coder
    forget(tab, served.url)
    arrive(tab, served.url)
    tab.set("max_tokens", 6)
    tab.set("seed", 1)
    return tab


def test_a_gap_in_the_text(filler: Playground) -> None:
    page = filler.page
    bodies = sent(filler)
    filler.write("abyz")
    caret(filler, 2)
    page.keyboard.press("Alt+g")
    expect(page.locator("#gap-start")).to_be_visible()
    expect(page.locator("#gap-end")).to_be_hidden()
    expect(page.locator("#continue-words")).to_have_text("Fill the gap")
    page.keyboard.press("Control+Enter")
    filler.settle()
    assert (bodies[0]["prompt"], bodies[0]["suffix"]) == ("ab", "yz")
    first = filler.text
    assert first.startswith("ab")
    assert first.endswith("yz")
    assert len(first) > 4
    expect(page.locator("#gap-end")).to_be_visible()
    # Fill it again: the model reads the same, and each version stays.
    page.keyboard.press("Alt+r")
    filler.settle()
    second = filler.text
    assert (bodies[1]["prompt"], bodies[1]["suffix"]) == ("ab", "yz")
    assert second != first
    page.keyboard.press("Alt+ArrowLeft")
    assert filler.text == first
    expect(page.locator("#gap-end")).to_be_visible()
    # In several versions, one of which is taken.
    page.keyboard.press("Control+Shift+Enter")
    filler.settle()
    choices = page.locator(".choice")
    expect(choices).to_have_count(3)
    fills = choices.locator(".choice-text").all_text_contents()
    choices.nth(1).get_by_role("button").click()
    assert filler.text == f"ab{fills[1]}yz"
    # One key joins: the text stays, the marks go, and Continue continues.
    page.keyboard.press("Alt+g")
    expect(page.locator("#gap-start")).to_be_hidden()
    assert filler.text == f"ab{fills[1]}yz"
    expect(page.locator("#continue-words")).not_to_have_text("Fill the gap")
    # The gap follows edits before it.
    caret(filler, 2)
    page.keyboard.press("Alt+g")
    caret(filler, 0)
    page.keyboard.type("12")
    page.keyboard.press("Control+Enter")
    filler.settle()
    assert bodies[-1]["prompt"] == "12ab"


def test_infill_writes_towards_what_follows(filler: Playground) -> None:
    page = filler.page
    bodies = sent(filler)
    filler.view("settings")
    page.evaluate("document.querySelector('#field-infill').click()")
    filler.write("abcyz")
    page.evaluate("document.querySelector('#text').setSelectionRange(2, 3)")
    page.keyboard.press("Control+Enter")
    filler.settle()
    # A selection is what the model replaces.
    assert (bodies[0]["prompt"], bodies[0]["suffix"]) == ("ab", "yz")
    assert filler.text.startswith("ab")
    assert filler.text.endswith("yz")
    page.click("#new")
    page.click("[data-beginning=gap]")
    filler.settle()
    assert bodies[1]["suffix"].startswith("\n    return total")
    # What looks like a program has a font of its own.
    expect(page.locator("html")).to_have_attribute("data-face", "mono")


def test_a_search_for_the_middle_says_so(editor: Playground) -> None:
    """The embedded model has no tokens for it, and the reader waits."""
    page = editor.page
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/completions", hold)
    page.click("[data-beginning=gap]")
    expect(page.locator("#speed")).to_contain_text("Searching for the middle")
    held[0].continue_()
    page.unroute("**/v1/completions")
    page.keyboard.press("Escape")
    editor.settle()
    expect(page.locator("#speed")).not_to_contain_text("Searching")


TINT = """(step) => {
    const line = document.querySelector("#overlay > div");
    const style = getComputedStyle(line, `::highlight(tint-${step})`);
    return [style.backgroundColor, style.textDecorationLine];
}"""
CLEAR = "rgba(0, 0, 0, 0)"


def look(editor: Playground, name: str, value: str) -> None:
    editor.page.click("#look-open")
    editor.page.check(f"#looks input[name=look-{name}][value={value}]", force=True)
    editor.page.keyboard.press("Escape")


def test_the_appearance_is_set_and_kept(written: Playground) -> None:
    """Tints, strip, font, size and width; a reload keeps them."""
    page = written.page
    assert page.evaluate(TINT, 3)[0] != CLEAR
    look(written, "tints", "off")
    assert page.evaluate(TINT, 3) == [CLEAR, "none"]
    look(written, "tints", "underline")
    assert page.evaluate(TINT, 3) == [CLEAR, "underline"]
    look(written, "tints", "hover")
    page.mouse.move(2, 2)
    assert page.evaluate(TINT, 3)[0] == CLEAR
    page.hover("#text")
    assert page.evaluate(TINT, 3)[0] != CLEAR
    look(written, "strip", "hidden")
    expect(page.locator("#strip-box")).to_be_hidden()
    font = "getComputedStyle(document.querySelector('#text')).fontFamily"
    size = "getComputedStyle(document.querySelector('#text')).fontSize"
    before = page.evaluate(size)
    look(written, "font", "sans")
    assert "sans-serif" in page.evaluate(font)
    look(written, "size", "xl")
    assert page.evaluate(size) > before
    wide = page.locator("#text").bounding_box()
    look(written, "width", "narrow")
    narrow = page.locator("#text").bounding_box()
    assert wide is not None
    assert narrow is not None
    assert narrow["width"] < wide["width"]
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    assert page.get_attribute("html", "data-tints") == "hover"
    assert page.get_attribute("html", "data-face") == "sans"
    # Code has a font of its own if the reader leaves it to the page.
    look(written, "font", "auto")
    assert page.get_attribute("html", "data-face") == "serif"
    page.focus("#text")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("def f(x):\n    return x + 1\n")
    expect(page.locator("html")).to_have_attribute("data-face", "mono")


def test_tints_end_where_words_end(editor: Playground) -> None:
    page = editor.page
    place = page.locator("#text").bounding_box()
    editor.write("The keeper of the lighthouse wrote a letter to his daughter every day, " * 3)
    editor.score()
    # The strip is below the text and does not push it.
    expect(page.locator("#strip-box")).to_be_visible()
    now = page.locator("#text").bounding_box()
    assert place is not None
    assert now is not None
    assert now["y"] == place["y"]
    painted = page.evaluate(
        """() => [...CSS.highlights].filter(([name]) => name.startsWith("tint-"))
            .flatMap(([, ranges]) => [...ranges].map((each) => {
                const range = document.createRange();
                range.setStart(each.startContainer, each.startOffset);
                range.setEnd(each.endContainer, each.endOffset);
                return [String(range), range.getClientRects().length];
            }))"""
    )
    assert len(painted) > 30
    # No tint has white space at its ends, so none runs over the end of a line.
    assert [text for text, _ in painted if text != text.strip()] == []
    assert {lines for _, lines in painted} == {1}


def test_the_foot_counts_a_stream_and_times_the_last_answer(editor: Playground) -> None:
    page = editor.page
    editor.set("max_tokens", 2000)
    editor.set("logprobs", 0)
    page.evaluate("document.querySelector('#field-ignore_eos').click()")
    editor.write("Long ago")
    expect(page.locator("#count")).to_have_text("2 of 8,192 tokens")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    # The count goes up while the text comes.
    editor.until(
        """parseInt(document.querySelector('#count').textContent) > 4
            && document.body.dataset.running === 'writing'"""
    )
    page.keyboard.press("Escape")
    editor.settle()
    editor.set("max_tokens", 4)
    page.focus("#text")
    editor.proceed()
    expect(page.locator("#speed")).to_have_text(
        re.compile(r"^4 tokens · [\d,.]+ tokens/s · first after [\d.]+ s$")
    )
    # The live view says in a sentence what each plot is.
    editor.view("server")
    hints = page.locator("#live .hint").all_inner_texts()
    assert len(hints) == 5
    assert all(hint.endswith(".") for hint in hints)


def test_a_count_that_comes_during_a_score_is_of_the_whole_text(written: Playground) -> None:
    page = written.page
    counts: list[Route] = []
    scores: list[Route] = []
    page.route("**/tokenize", lambda route: counts.append(route))  # noqa: PLW0108 - a method takes no attributes
    with page.expect_request("**/tokenize"):
        written.proceed()
    page.route("**/v1/completions", lambda route: scores.append(route))  # noqa: PLW0108
    with page.expect_request("**/v1/completions"):
        page.click("#score")
    with page.expect_response("**/tokenize") as answer:
        counts[-1].continue_()
    number = answer.value.json()["count"]
    # The foot of the page is drawn a frame after the answer is read.
    page.evaluate(
        """() => new Promise((done) => setTimeout(() => requestAnimationFrame(
            () => requestAnimationFrame(done))))"""
    )
    assert page.locator("#count").inner_text() == f"{number} of 8,192 tokens"
    scores[-1].continue_()
    written.settle()


def test_the_foot_of_the_page_fits(written: Playground) -> None:
    """Nothing in the foot of the page runs into its neighbour, at any width with a panel."""
    page = written.page
    for width in (1280, 1000, 961):
        page.set_viewport_size({"width": width, "height": 700})
        boxes = page.evaluate(
            """() => [...document.querySelectorAll(".dock > *")]
                .map((each) => each.getBoundingClientRect())
                .filter((box) => box.width > 0).map(({ left, right }) => [left, right])"""
        )
        for (_, right), (left, _) in itertools.pairwise(boxes):
            assert right <= left
