"""The playground in a browser, with the real model: what readers do most."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from e2e.browser import Playground, arrive
from e2e.process import Server

START = "Once upon a time, in a village by the sea,"
TOKENS = 12


@pytest.fixture
def written(editor: Playground) -> Playground:
    """A page with a continuation of ``TOKENS`` tokens."""
    editor.set("seed", 7)
    editor.set("max_tokens", TOKENS)
    editor.write(START)
    assert editor.proceed()
    return editor


def test_everything_comes_from_the_server(editor: Playground, server: Server) -> None:
    assert {url.split("?")[0][: len(server.url)] for url in editor.requests} == {server.url}
    assert any(url.endswith("/playground/main.js") for url in editor.requests)


def test_write_and_stream(editor: Playground) -> None:
    editor.set("seed", 7)
    editor.set("max_tokens", 24)
    editor.write(START)
    editor.page.evaluate(
        """() => {
            window.steps = 0;
            const overlay = document.querySelector("#overlay");
            const watch = new MutationObserver((seen) => { window.steps += seen.length; });
            watch.observe(overlay, { subtree: true, childList: true, characterData: true });
        }"""
    )
    added = editor.proceed()
    assert editor.text == START + added
    # The text grew in many steps, not at once.
    assert editor.page.evaluate("window.steps") > 5
    assert sum(editor.tints().values()) == 24
    assert "24 tokens" in editor.page.inner_text("#figures")


def test_the_same_seed_writes_the_same(written: Playground) -> None:
    first = written.text
    written.page.keyboard.press("Control+z")
    assert written.text == START
    written.proceed()
    assert written.text == first


def test_stop_keeps_what_came(editor: Playground) -> None:
    # So many, and so random that no draft is right: a slow page sees the stream before its end.
    editor.set("max_tokens", 8000)
    editor.set("temperature", 2)
    editor.set("logprobs", 0)
    editor.page.evaluate("document.querySelector('#field-ignore_eos').click()")
    editor.write(START)
    editor.page.keyboard.press("Control+Enter")
    editor.until(f"document.querySelector('#text').value.length > {len(START) + 20}")
    expect(editor.page.locator("#stop")).to_be_visible()
    expect(editor.page.locator("#undo")).to_be_disabled()
    editor.page.keyboard.press("Control+z")
    editor.page.keyboard.press("Escape")
    editor.settle()
    kept = editor.text
    assert kept.startswith(START)
    assert len(kept) < 16_000
    # The undo during the stream did nothing, and lost no undo step.
    editor.page.keyboard.press("Control+z")
    assert editor.text == START
    editor.page.keyboard.press("Control+y")
    assert editor.text == kept
    expect(editor.page.locator("#continue")).to_be_visible()
    editor.set("max_tokens", 3)
    editor.page.focus("#text")
    assert editor.proceed()
    assert editor.text.startswith(kept)


def test_there_is_nothing_to_undo_at_first(editor: Playground) -> None:
    undo = editor.page.locator("#undo")
    expect(undo).to_be_disabled()
    editor.write("A")
    undo.click()
    assert editor.text == ""
    expect(undo).to_be_disabled()


def test_undo_and_redo(written: Playground) -> None:
    page, whole = written.page, written.text
    written.write(" And then")
    page.keyboard.press("Control+z")
    assert written.text == whole
    page.keyboard.press("Control+z")
    assert written.text == START
    page.keyboard.press("Control+Shift+z")
    assert written.text == whole
    page.keyboard.press("Control+y")
    assert written.text == f"{whole} And then"
    # Every undone text is still a branch.
    assert len(written.branches()) == 3


def test_editing_unsettles_what_follows(written: Playground) -> None:
    before = sum(written.tints().values())
    page = written.page
    page.evaluate(f"document.querySelector('#text').setSelectionRange({len(START)}, {len(START)})")
    page.keyboard.press("ArrowRight")
    page.keyboard.insert_text("x")
    assert before == TOKENS
    assert sum(written.tints().values()) == 0
    page.keyboard.press("Control+z")
    assert sum(written.tints().values()) == TOKENS


def test_hover_shows_alternatives(written: Playground) -> None:
    page = written.page
    spot = page.evaluate(
        """(offset) => {
            const range = document.createRange();
            const text = document.querySelector("#overlay > div").firstChild;
            range.setStart(text, offset + 1);
            range.setEnd(text, offset + 3);
            const { x, y, width, height } = range.getBoundingClientRect();
            return { x: x + width / 2, y: y + height / 2 };
        }""",
        len(START),
    )
    page.mouse.move(spot["x"], spot["y"])
    card = page.locator("#card")
    expect(card).to_be_visible()
    shares = card.locator(".bar-value").all_inner_texts()
    assert len(shares) >= 6
    assert abs(sum(float(share.strip(" %<")) for share in shares) - 100) < 1
    assert card.locator(".other").count() == 1
    page.mouse.move(5, 5)
    expect(card).to_be_hidden()


def test_arrow_keys_show_alternatives_and_branch(written: Playground) -> None:
    page, whole = written.page, written.text
    page.keyboard.press("ArrowLeft")
    card = page.locator("#card")
    expect(card).to_be_visible()
    for _ in range(4):
        page.keyboard.press("Control+ArrowLeft")
    caret = page.evaluate("document.querySelector('#text').selectionStart")
    page.keyboard.press("Alt+ArrowDown")
    taken = page.evaluate("document.activeElement.querySelector('.bar-token').textContent")
    page.keyboard.press("Enter")
    written.settle()
    assert written.text != whole
    assert written.text[: caret - 1] == whole[: caret - 1]
    assert taken.replace("·", " ") in written.text[caret - 1 :]
    # Tints: the tokens before the branch, the chosen token, and TOKENS more.
    assert sum(written.tints().values()) > TOKENS
    page.keyboard.press("Control+z")
    assert written.text == whole


@pytest.mark.parametrize("number", [1, 2, 5])
def test_alt_and_a_digit_take_an_alternative(written: Playground, number: int) -> None:
    page, whole = written.page, written.text
    page.evaluate(f"document.querySelector('#text').setSelectionRange({len(START)}, {len(START)})")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    bar = page.locator("#card button.bar").nth(number - 1)
    expect(bar.locator(".bar-number")).to_have_text(str(number))
    chosen = bar.is_disabled()
    token = bar.locator(".bar-token").inner_text().replace("·", " ")
    page.keyboard.press(f"Alt+Digit{number}")
    written.settle()
    assert written.text.startswith(START + token)
    # The text already has the chosen token, so there is no branch to make.
    assert (written.text == whole) == chosen


def test_alt_and_a_digit_beyond_the_list_take_nothing(written: Playground) -> None:
    page, whole = written.page, written.text
    page.keyboard.press("ArrowLeft")
    bars = page.locator("#card button.bar").count()
    assert bars < 9
    for number in range(bars + 1, 10):
        page.keyboard.press(f"Alt+Digit{number}")
    assert page.get_attribute("body", "data-running") == ""
    assert written.text == whole


def test_clicking_an_alternative_branches(written: Playground) -> None:
    page, whole = written.page, written.text
    page.evaluate(f"document.querySelector('#text').setSelectionRange({len(START)}, {len(START)})")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    choice = page.locator("#card button.bar:not([disabled])").first
    token = choice.locator(".bar-token").inner_text().replace("·", " ")
    choice.click()
    written.settle()
    assert written.text.startswith(START + token)
    assert written.text != whole
    assert len(written.branches()) == 4


def test_score_what_was_written(editor: Playground) -> None:
    editor.write("The cat sat on the mat.")
    assert sum(editor.tints().values()) == 0
    editor.score()
    # Nothing predicts the first token.
    tints = editor.tints()
    assert sum(tints.values()) == 6
    assert len([step for step, count in tints.items() if count]) > 1
    page = editor.page
    page.evaluate("document.querySelector('#text').setSelectionRange(7, 15)")
    expect(page.locator("#figures")).to_contain_text("Selected: 3 tokens")
    page.evaluate("document.querySelector('#text').setSelectionRange(0, 0)")
    expect(page.locator("#figures")).to_contain_text("perplexity")
    expect(page.locator("#figures")).not_to_contain_text("Selected")


def test_bytes_are_joined_into_characters(editor: Playground) -> None:
    editor.write("Smile: 🦜 蒻 end")
    editor.score()
    page = editor.page
    place = editor.text.index("🦜")
    page.evaluate(f"document.querySelector('#text').setSelectionRange({place}, {place})")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#card")).to_contain_text("tokens together make this text")
    assert " + " in page.inner_text("#card .card-token bdi")


def test_choices_side_by_side(editor: Playground) -> None:
    editor.set("seed", 3)
    editor.set("max_tokens", 12)
    editor.set("n", 3)
    editor.write(START)
    editor.proceed()
    assert editor.text == START
    columns = editor.page.locator(".choice")
    expect(columns).to_have_count(3)
    texts = columns.locator(".choice-text").all_text_contents()
    assert len(set(texts)) == 3
    columns.nth(1).get_by_role("button").click()
    assert editor.text == START + texts[1]
    expect(columns).to_have_count(0)
    assert len(editor.branches()) == 5


def test_best_of_shows_the_likeliest(editor: Playground, server: Server) -> None:
    editor.set("seed", 5)
    editor.set("max_tokens", 6)
    editor.set("best_of", 4)
    editor.write(START)
    with editor.page.expect_request("**/v1/completions") as sent:
        added = editor.proceed()
    assert json.loads(sent.value.post_data or "")["best_of"] == 4
    assert "stream" not in json.loads(sent.value.post_data or "")
    assert added


def test_stop_sequences_and_bias(editor: Playground) -> None:
    page = editor.page
    editor.set("seed", 7)
    editor.set("max_tokens", 24)
    editor.set("stop", ".")
    page.keyboard.press("Enter")
    editor.set("logit_bias", " the")
    page.keyboard.press("Enter")
    chip = page.locator(".biases .chip")
    expect(chip).to_have_count(1)
    assert "·the" in chip.inner_text()
    editor.write(START)
    with page.expect_request("**/v1/completions") as sent:
        added = editor.proceed()
    body = json.loads(sent.value.post_data or "")
    assert body["stop"] == ["."]
    assert list(body["logit_bias"].values()) == [-100]
    assert added
    assert "." not in added
    assert " the " not in f"{added} "


def test_every_control_reaches_the_request(editor: Playground) -> None:
    wanted = {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 3, "seed": 11, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "top_k": 40, "min_p": 0.05, "min_tokens": 1, "logprobs": 2,
    }  # fmt: skip
    for name, value in wanted.items():
        editor.set(name, value)
    editor.page.evaluate("document.querySelector('#field-ignore_eos').click()")
    editor.write("A")
    with editor.page.expect_request("**/v1/completions") as sent:
        editor.proceed()
    body = json.loads(sent.value.post_data or "")
    assert {name: body[name] for name in wanted} == wanted
    assert body["ignore_eos"] is True


def test_wrong_values_are_said_at_the_control(editor: Playground) -> None:
    editor.set("temperature", 3)
    error = editor.page.locator("#error-temperature")
    expect(error).to_have_text("A number from 0 to 2.")
    editor.set("temperature", 1)
    expect(error).to_be_empty()
    # Errors that only the server finds are shown at the control, too.
    editor.set("max_tokens", 9000)
    editor.write("A")
    editor.page.keyboard.press("Control+Enter")
    expect(editor.page.locator("#notice")).to_contain_text("maximum context length is 8192 tokens")
    expect(editor.page.locator("#notice")).to_contain_text("ask for fewer tokens")
    expect(editor.page.locator("#error-max_tokens")).to_contain_text("9001 tokens")
    expect(editor.page.locator("#field-max_tokens")).to_have_attribute("aria-invalid", "true")
    assert editor.text == "A"


def test_tokens_as_you_type(editor: Playground) -> None:
    editor.view("tokens")
    editor.write("Hello 🦜 world")
    tokens = editor.page.locator(".token-list .token")
    expect(editor.page.locator("#count")).to_contain_text("of 8,192 tokens")
    expect(tokens.first).to_contain_text("Hello")
    ids = [int(text) for text in tokens.locator(".id").all_inner_texts()]
    assert len(ids) == int(editor.page.inner_text(".token-sum").split()[0])
    # Tokens of partial characters are shown as bytes.
    assert any("F0 9F" in text for text in tokens.locator("bdi").all_inner_texts())


def export(editor: Playground, folder: Path) -> Path:
    """Returns the file that the page makes of all branches."""
    editor.page.click("#export-open")
    editor.page.check("#export input[value=tree]")
    with editor.page.expect_download() as saved:
        editor.page.click("#export-save")
    saved.value.save_as(folder / "branches.json")
    return folder / "branches.json"


def test_the_tree(written: Playground, tmp_path: Path) -> None:
    """Branches are walked, named, compared, exported, deleted and imported."""
    page = written.page
    first = written.text
    page.keyboard.press("Control+z")
    written.set("seed", 8)
    page.focus("#text")
    written.proceed()
    second = written.text
    assert second != first
    assert len(written.branches()) == 4
    rows = page.locator("#branches > li")

    # Move, with the mouse and the keyboard.
    rows.nth(2).click()
    assert written.text == first
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert written.text == second

    # Rename.
    rows.nth(3).focus()
    page.keyboard.press("F2")
    page.keyboard.type("The second way")
    page.keyboard.press("Enter")
    expect(rows.nth(3)).to_contain_text("The second way")

    # Compare: only differences are marked.
    page.keyboard.press("c")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("c")
    sides = page.locator("#comparison .side")
    expect(sides).to_have_count(2)
    # Both texts are shown, in either order.
    assert set(sides.locator("p").all_text_contents()) == {first, second}
    unmarked = page.evaluate(
        """() => [...document.querySelectorAll("#comparison p")].map((p) =>
            [...p.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join(""))"""
    )
    assert unmarked[0] == unmarked[1]
    assert unmarked[0].startswith(START)
    assert page.locator("#comparison ins").count() > 0
    assert page.locator("#comparison del").count() > 0
    page.keyboard.press("Escape")
    expect(page.locator("#comparison")).to_be_hidden()

    # Export, prune, import.
    file = export(written, tmp_path)
    exported = json.loads(file.read_text())
    assert [node["name"] for node in exported["nodes"]].count("The second way") == 1
    rows.nth(3).focus()
    page.keyboard.press("Enter")
    assert written.text == second
    page.keyboard.press("Delete")
    assert written.text == START
    expect(rows).to_have_count(3)
    page.set_input_files("#import-file", file)
    expect(rows).to_have_count(4)
    expect(page.locator("#branches")).to_contain_text("The second way")
    assert written.text == second


BROKEN = {
    "{": "is not JSON",
    '{"format": "x"}': "has no branches",
    '{"format": "afterword-branches", "version": 9, "nodes": []}': "version 9",
    '{"format": "afterword-branches", "version": 1, "nodes": [{"id": "a"}]}': "Node 1",
}


def test_broken_files_are_refused(editor: Playground, tmp_path: Path) -> None:
    editor.write("mine")
    editor.view("branches")
    notice = editor.page.locator("#notice")
    for content, complaint in BROKEN.items():
        (tmp_path / "bad.json").write_text(content)
        editor.page.set_input_files("#import-file", tmp_path / "bad.json")
        expect(notice).to_contain_text(complaint)
        expect(notice).to_contain_text("Nothing was changed")
        assert editor.text == "mine"
        editor.page.click("#notice .remove")
        expect(notice).to_be_hidden()


def test_kept_in_the_browser(written: Playground) -> None:
    page, whole = written.page, written.text
    written.write(" More")
    # At once, before anything is saved.
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    assert written.text == f"{whole} More"
    assert sum(written.tints().values()) == TOKENS
    assert len(written.branches()) == 3
    assert page.input_value("#field-seed") == "7"


# A visit as the first release stored it in the browser. Stored names never change.
STORED = """async () => {
    const gone = indexedDB.deleteDatabase("afterword");
    await new Promise((done) => { gone.onsuccess = done; });
    const open = indexedDB.open("afterword", 1);
    open.onupgradeneeded = () => {
        open.result.createObjectStore("nodes", { keyPath: "id" });
        open.result.createObjectStore("page");
    };
    const base = await new Promise((done) => { open.onsuccess = () => done(open.result); });
    const node = (id, parent, from, text, more) => ({
        id, parent, from, text, by: "you", groups: [], whole: false, name: "", finish: null,
        ...more,
    });
    const token = { text: " upon", logprob: -1, top: [[" upon", -1], [" more", -2]] };
    const groups = [{ start: 4, end: 9, tokens: [token] }];
    const written = { by: "model", finish: "length", name: "kept", groups };
    const nodes = [
        node("root", null, 0, ""), node("a", "root", 0, "Once"),
        node("b", "a", 4, " upon", written),
    ];
    const change = base.transaction(["nodes", "page"], "readwrite");
    nodes.forEach((each, i) => {
        change.objectStore("nodes").put({ id: each.id, order: i + 1, node: each });
    });
    const settings = { model: "", temperature: 0.5, seed: 7, stop: ["."] };
    const page = { at: "b", text: "Once upon a", suffix: "", settings };
    change.objectStore("page").put(page, "page");
    await new Promise((done) => { change.oncomplete = done; });
    base.close();
    localStorage.setItem("afterword.theme", "dark");
    sessionStorage.setItem("afterword.key", "sk-kept");
}"""


def test_what_an_earlier_release_stored_is_still_there(editor: Playground, server: Server) -> None:
    page = editor.page
    # A path without scripts, so that nothing else writes.
    page.goto(f"{server.url}/docs")
    page.evaluate(STORED)
    with page.expect_request("**/v1/models") as asked:
        arrive(editor, server.url)
    assert asked.value.headers["authorization"] == "Bearer sk-kept"
    assert editor.text == "Once upon a"
    assert sum(editor.tints().values()) == 1
    assert page.input_value("#field-temperature") == "0.5"
    assert page.input_value("#field-seed") == "7"
    expect(page.locator("#field-stop ~ .chips .chip")).to_have_count(1)
    assert page.get_attribute("html", "data-theme") == "dark"
    assert [words.split("\n")[0] for words in editor.branches()] == ["Beginning", "Once", "kept"]
