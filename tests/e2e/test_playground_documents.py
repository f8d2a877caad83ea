"""The playground for those who stay: branches as a map, documents, files; and telephones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from e2e.browser import Open, Playground, arrive, watch
from e2e.process import Server
from e2e.test_playground_care import findings, lock

START = "Once upon a time, in a village by the sea,"


def node(key: str, parent: str, start: int, text: str, by: str = "model") -> dict[str, object]:
    return {
        "id": key, "parent": parent, "from": start, "text": text, "by": by, "groups": [],
        "whole": False, "name": "", "finish": None,
    }  # fmt: skip


GROVE = {
    "format": "afterword-branches",
    "version": 1,
    "nodes": [
        {**node("root", "", 0, "", "you"), "parent": None},
        node("a", "root", 0, "The sea was", "you"),
        node("b", "a", 11, " calm."),
        node("c", "a", 11, " grey, and the old lighthouse stood alone."),
        node("d", "c", 42, " A heron came."),
        node("e", "a", 4, "harbour slept."),
    ],
}


@pytest.fixture
def grove(editor: Playground, tmp_path: Path) -> Playground:
    """A page with the branches of ``GROVE``, at the last one."""
    file = tmp_path / "grove.json"
    file.write_text(json.dumps(GROVE))
    editor.view("branches")
    editor.page.set_input_files("#import-file", file)
    expect(editor.page.locator("#branches > li")).to_have_count(6)
    return editor


def test_the_tree_is_indented_named_bookmarked_and_searched(grove: Playground) -> None:
    page = grove.page
    rows = page.locator("#branches > li")
    levels = rows.evaluate_all("(all) => all.map((row) => row.ariaLevel)")
    assert levels == ["1", "2", "3", "3", "4", "3"]
    lefts = page.locator(".branch-dot").evaluate_all("(all) => all.map((e) => e.offsetLeft)")
    assert len(set(lefts)) == 4
    assert [lefts[int(level) - 1] for level in levels[:3]] == lefts[:3]
    # A bookmark, and the list of bookmarks.
    rows.nth(3).click()
    page.keyboard.press("Alt+b")
    expect(rows.nth(3).locator("[aria-label=bookmarked]")).to_be_visible()
    page.click("#branch-marked")
    expect(rows).to_have_count(1)
    page.click("#branch-marked")
    # A search finds text in any branch, and goes to its place.
    page.fill("#branch-search", "lighthouse")
    expect(rows).to_have_count(1)
    expect(rows.locator("mark")).to_have_text("lighthouse")
    rows.first.click()
    assert page.evaluate("document.querySelector('#text').value").startswith("The sea was grey")
    page.focus("#text")
    assert page.evaluate("document.querySelector('#text').selectionEnd") == 40
    page.fill("#branch-search", "nowhere")
    expect(page.locator("#branches-none")).to_be_visible()
    page.fill("#branch-search", "")
    expect(rows).to_have_count(6)


def test_a_map_that_is_dragged_and_clicked(grove: Playground) -> None:
    page = grove.page
    page.keyboard.press("Alt+m")
    expect(page.locator("#stage-title")).to_have_text("Map of the branches")
    canvas = page.locator("#map-canvas")
    picture = "document.querySelector('#map-canvas').toDataURL()"
    grove.tints()
    still = page.evaluate(picture)
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 60)
    page.mouse.up()
    grove.tints()
    moved = page.evaluate(picture)
    assert moved != still
    page.click("#map-in")
    grove.tints()
    assert page.evaluate(picture) != moved
    page.click("#map-fit")
    grove.tints()
    assert page.evaluate(picture) == still
    # The map walks with the keys, and a click goes to a box: the current one is filled.
    before = page.input_value("#text")
    spot = page.evaluate(
        """() => {
            const canvas = document.querySelector("#map-canvas");
            const { width, height } = canvas;
            const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            const ratio = width / canvas.clientWidth;
            const seen = (x, y) => pixels[4 * (y * width + x) + 3] > 0;
            // The rightmost box is that of the longest path.
            for (let x = width - 1; x >= 0; x -= 1) {
                for (let y = 0; y < height; y += 1) {
                    if (seen(x, y)) return { x: (x - 20) / ratio, y: y / ratio };
                }
            }
        }"""
    )
    canvas.click(position=spot)
    assert page.input_value("#text") != before
    assert page.input_value("#text").endswith("A heron came.")
    page.click("#stage-close")
    expect(page.locator("#stage")).to_be_hidden()


def test_comparison_has_the_whole_width(grove: Playground) -> None:
    page = grove.page
    page.locator("#branches > li").nth(2).focus()
    page.keyboard.press("c")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("c")
    left, right = page.locator("#comparison .side").all()
    boxes = [side.bounding_box() for side in (left, right)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["width"] + boxes[1]["width"] >= 1279
    right.get_by_role("button").click()
    expect(page.locator("#stage")).to_be_hidden()
    expect(page.locator("#panel")).to_be_visible()
    assert page.input_value("#text").startswith("The sea was grey")


def test_a_path_as_text_markdown_and_json(grove: Playground, tmp_path: Path) -> None:
    page = grove.page
    page.locator("#branches > li").nth(2).click()
    files = {}
    for kind in ("text", "markdown", "path"):
        page.click("#export-open")
        page.check(f"#export input[value={kind}]")
        with page.expect_download() as saved:
            page.click("#export-save")
        file = tmp_path / kind
        saved.value.save_as(file)
        files[saved.value.suggested_filename] = file.read_text()
    assert files.pop("The-sea-was-calm.txt") == "The sea was calm."
    assert files.pop("The-sea-was-calm.md") == "# The sea was calm.\n\n**The sea was** calm.\n"
    path = json.loads(files.pop("The-sea-was-calm.json"))
    assert path["passages"] == [
        {"by": "you", "text": "The sea was"}, {"by": "model", "text": " calm."},
    ]  # fmt: skip


def documents(page: Page) -> list[str]:
    page.click("#documents-open")
    # The dialog opens when its list is there.
    expect(page.locator("#documents")).to_be_visible()
    names = page.locator("#document-list bdi").all_inner_texts()
    page.keyboard.press("Escape")
    return names


def test_several_documents(editor: Playground, server: Server) -> None:
    page = editor.page
    editor.write("The first one")
    editor.set("temperature", 0.3)
    page.click("#new")
    assert editor.text == ""
    editor.write("The second one")
    page.click("#documents-open")
    page.fill("#document-name", "Two")
    page.keyboard.press("Escape")
    expect(page.locator("#documents-open")).to_contain_text("Two")
    assert documents(page) == ["Two", "The first one"]
    page.click("#documents-open")
    page.locator("#document-list .document-go").nth(1).click()
    editor.until("document.querySelector('#text').value === 'The first one'")
    # A reload right after a key loses nothing, and stays in the document.
    page.keyboard.type("!")
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    assert editor.text == "The first one!"
    assert page.input_value("#field-temperature") == "0.3"
    # Deleting asks once more.
    page.click("#documents-open")
    delete = page.locator("#document-list .document").nth(1).locator("button").nth(1)
    delete.click()
    expect(page.locator("#document-list .document")).to_have_count(2)
    expect(delete).to_have_text("Delete for good?")
    delete.click()
    expect(page.locator("#document-list .document")).to_have_count(1)
    page.keyboard.press("Escape")
    assert documents(page) == ["The first one!"]


def test_two_tabs_and_a_link_overwrite_nothing(visit: Open) -> None:
    first = visit()
    page = first.page
    first.write("Shared")
    assert documents(page) == ["Shared"]
    second = Playground(page.context.new_page())
    watch(second)
    arrive(second, page.url)
    assert second.text == "Shared"
    second.write(" and changed there")
    assert documents(second.page) == ["Shared and changed there"]
    first.write(" and changed here")
    expect(page.locator("#notice")).to_contain_text("Another tab changed this document.")
    assert sorted(documents(page)) == ["Shared and changed here", "Shared and changed there"]
    # A shared link is a document of its own.
    page.click("#share-open")
    page.click("#share-link")
    expect(page.locator("#share-said")).not_to_be_empty()
    second.page.goto("about:blank")
    arrive(second, page.url)
    assert second.text == "Shared and changed here"
    assert len(documents(second.page)) == 3
    assert second.complaints == []


SMALL = """() => [...document.querySelectorAll("button, select, input, a")].filter((element) => {
    const { width } = element.getBoundingClientRect();
    const hidden = width === 0 || element.closest(".skip");
    const isMark = element.matches("[type=radio], [type=checkbox]");
    const box = (isMark ? element.labels[0] : element).getBoundingClientRect();
    return !hidden && element.type !== "range" && (box.height < 44 || box.width < 44);
}).map((element) => element.outerHTML.slice(0, 90))"""


def test_the_views_on_a_telephone(visit: Open) -> None:
    editor = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    for view in ("settings", "branches", "tokens", "server"):
        editor.view(view)
        assert editor.page.evaluate(SMALL) == []


def test_a_telephone(visit: Open) -> None:
    """Everything is large enough for a finger, closes by a tap, and is within the screen."""
    editor = visit(
        viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    page = editor.page
    assert page.evaluate(SMALL) == []
    assert findings(page) == []
    editor.set("max_tokens", 4)
    editor.set("seed", 3)
    assert page.evaluate(SMALL) == []
    # The drawer has a button that closes it, and closes by a tap outside.
    page.tap("#panel-close")
    expect(page.locator("#panel")).to_be_hidden()
    page.tap("#panel-toggle")
    expect(page.locator("#panel")).to_be_visible()
    page.touchscreen.tap(180, 100)
    expect(page.locator("#panel")).to_be_hidden()
    # So does every dialog.
    for opener, dialog in (("#documents-open", "#documents"), ("#look-open", "#look")):
        page.tap(opener)
        assert page.evaluate(SMALL) == []
        page.tap(f"{dialog} [data-close]")
        expect(page.locator(dialog)).to_be_hidden()
        page.tap(opener)
        expect(page.locator(dialog)).to_be_visible()
        page.touchscreen.tap(4, 4)
        expect(page.locator(dialog)).to_be_hidden()
    assert page.locator("dialog").count() == page.locator("dialog [data-close]").count()
    editor.write("The sea was")
    page.tap("#continue")
    editor.settle()
    # The card of a token is a sheet within the screen, with a button that closes it.
    page.tap("#text", position={"x": 30, "y": 12})
    page.keyboard.press("Control+End")
    card = page.locator("#card")
    expect(card).to_be_visible()
    box = card.bounding_box()
    assert box is not None
    assert box["x"] == 0
    assert box["width"] == 360
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 640
    assert page.evaluate(SMALL) == []
    page.tap("#card .card-close")
    expect(card).to_be_hidden()
    # Every choice is a swipe away.
    editor.set("n", 3)
    page.tap("#panel-close")
    page.tap("#continue")
    editor.settle()
    last = page.locator(".choice").nth(2)
    expect(last).not_to_be_in_viewport(ratio=0.5)
    page.evaluate("document.querySelector('.columns').scrollBy(9999, 0)")
    expect(last).to_be_in_viewport(ratio=0.9)
    last.get_by_role("button").tap()
    expect(page.locator("#choices")).to_be_hidden()
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_key_is_offered_only_where_the_server_wants_one(visit: Open) -> None:
    editor = visit()
    page = editor.page
    expect(page.locator("#key-open")).to_be_hidden()
    lock(page, "sk-right")
    page.reload()
    expect(page.locator("#key")).to_be_visible()
    page.click("#key [data-close]")
    expect(page.locator("#key")).to_be_hidden()
    page.click("#key-open")
    page.fill("#key-value", "sk-right")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_hidden()
    expect(page.locator("#key-open")).to_be_visible()


def test_the_reference_asks_for_the_key(visit: Open) -> None:
    editor = visit()
    page = editor.page
    lock(page, "sk-right", ["/openapi.json"])
    editor.view("server")
    page.click("#docs-open")
    page.fill("#key-value", "sk-right")
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).to_contain_text("POST /v1/completions")
    expect(page.locator("#reference dt").filter(has_text="temperature").first).to_be_visible()
    assert page.url.endswith("/")


def test_dialogs_and_stage_for_axe(visit: Open) -> None:
    editor = visit(locale="zh-CN")
    page = editor.page
    assert findings(page) == []
    editor.write("The sea was\n" * 2)
    editor.view("branches")
    for opener in ("#documents-open", "#look-open", "#export-open"):
        page.click(opener)
        assert findings(page) == []
        page.keyboard.press("Escape")
    page.keyboard.press("Alt+m")
    assert findings(page) == []
    page.keyboard.press("Escape")
    rows = page.locator("#branches > li")
    rows.first.focus()
    for key in ("c", "ArrowDown", "c"):
        page.keyboard.press(key)
    expect(page.locator("#comparison")).to_be_visible()
    assert findings(page) == []


def test_chinese_has_a_chinese_font(visit: Open) -> None:
    fonts = subprocess.run(
        ["fc-list", ":lang=zh"], check=False, capture_output=True, text=True
    ).stdout  # fmt: skip
    if "CJK" not in fonts:
        pytest.skip("this machine has no Chinese font; on Debian: apt install fonts-noto-cjk")
    editor = visit(locale="zh-CN")
    editor.write("灯塔“熄灭了”。")
    browser = editor.page.context.new_cdp_session(editor.page)
    browser.send("DOM.enable")
    browser.send("CSS.enable")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    for selector, face in (("#overlay", "Noto Serif CJK SC"), ("#continue", "Noto Sans CJK SC")):
        found = browser.send("DOM.querySelector", {"nodeId": root, "selector": selector})
        used = browser.send("CSS.getPlatformFontsForNode", {"nodeId": found["nodeId"]})["fonts"]
        assert face in {font["familyName"] for font in used}


def test_a_hundred_thousand_characters(editor: Playground) -> None:
    page = editor.page
    text = (
        "The keeper wrote a letter to his daughter every day of the long winter. " * 7 + "\n"
    ) * 200
    assert len(text) > 100_000
    page.focus("#text")
    page.keyboard.insert_text(text)
    expect(page.locator("#count")).to_contain_text("of 8,192 tokens")
    page.evaluate(
        """() => {
            window.changes = [];
            const watch = new MutationObserver((seen) => window.changes.push(...seen.map((one) =>
                [one.type, one.target.textContent.length])));
            watch.observe(document.querySelector("#overlay"), {
                subtree: true, childList: true, characterData: true });
        }"""
    )
    # A key changes one block of the text, at its end and in its middle.
    for place in (len(text), len(text) // 2):
        page.evaluate("window.changes.length = 0")
        page.evaluate(f"document.querySelector('#text').setSelectionRange({place}, {place})")
        page.keyboard.type("x")
        ((kind, length),) = page.evaluate("window.changes")
        assert kind == "characterData"
        assert length < 3000
    assert len(editor.text) == len(text) + 2
