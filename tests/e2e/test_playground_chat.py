"""The playground with an instruct model's chat template: what is shown is what is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Route, expect

from e2e.browser import Playground, arrive, forget, playground
from e2e.process import MODEL, Server, serving
from e2e.test_playground_care import findings
from e2e.test_playground_writing import caret, sent
from support.tiny_gguf import make_gguf

ASKED = "Say the word sea three times."
TOKENS = 6
Ask = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def schooled(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, embedded_model: Path
) -> Iterator[tuple[Playground, Server]]:
    """A tab on a server of the embedded model, an alias with its template, and a base model."""
    folder = tmp_path_factory.mktemp("chat")
    base = make_gguf(folder / "base.gguf", "qwen", context=2048)
    with (
        serving(
            folder / "stderr", "--slots", "4", "--model", f"{MODEL}={embedded_model}",
            "--model", f"base={base}", "--alias", f"ask={MODEL},template=chat",
        ) as served,
        playground(browser, served.url) as tab,
    ):  # fmt: skip
        yield tab, served


@pytest.fixture
def blank(schooled: tuple[Playground, Server]) -> Playground:
    tab, served = schooled
    forget(tab, served.url)
    arrive(tab, served.url)
    tab.set("temperature", 0)
    tab.set("min_p", 0)
    tab.set("max_tokens", TOKENS)
    return tab


@pytest.fixture
def chat(blank: Playground) -> Playground:
    """A page with the template on."""
    turn(blank)
    return blank


@pytest.fixture
def ask(schooled: tuple[Playground, Server]) -> Ask:
    """Sends a completion from outside the page. Returns its only choice."""

    def send(body: dict[str, Any]) -> dict[str, Any]:
        reply = httpx2.post(f"{schooled[1].url}/v1/completions", json=body, timeout=600)
        choice: dict[str, Any] = reply.json()["choices"][0]
        return choice

    return send


def turn(editor: Playground) -> None:
    """Turn the switch, and open its group."""
    editor.view("settings")
    box = editor.page.locator("#field-chat_template")
    box.evaluate("(e) => e.closest('details').setAttribute('open', '')")
    box.click()


def framed(*said: str) -> str:
    """Returns a conversation as the embedded model's template has it, written by hand."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for i, words in enumerate(said):
        role = "assistant" if i % 2 else "user"
        text += f"<|im_start|>{role}\n{words}"
        if role == "user" or i < len(said) - 1:
            text += "<|im_end|>\n"
    return text if len(said) % 2 == 0 else f"{text}<|im_start|>assistant\n"


def shows(editor: Playground, prompt: str) -> None:
    """Wait until the page shows this prompt as what is sent."""
    expect(editor.page.locator(".sent pre")).to_be_visible()
    editor.until(f"document.querySelector('.sent pre').textContent === {json.dumps(prompt)}")


def test_an_instruction_is_answered_and_what_is_sent_is_shown(chat: Playground, ask: Ask) -> None:
    page, bodies = chat.page, sent(chat)
    expect(page.locator("#start")).to_contain_text("The chat template is on")
    expect(page.locator("[data-beginning=list]")).to_contain_text("List ten things")
    expect(page.locator("#text")).to_have_attribute("placeholder", re.compile("an instruction"))
    chat.write(ASKED)
    shows(chat, framed(ASKED))
    assert page.locator(".sent strong").all_inner_texts() == [ASKED]
    expect(page.locator("#continue-words")).to_have_text("Answer")
    # The foot of the page counts what is sent.
    tokens = page.locator("#count")
    expect(tokens).to_have_text("37 of 8,192 tokens")
    chat.view("tokens")
    expect(page.locator(".token-sum")).to_contain_text(f"{len(framed(ASKED))} characters")
    chat.view("settings")
    added = chat.proceed()
    assert bodies[0]["prompt"] == framed(ASKED)
    assert "suffix" not in bodies[0]
    # It is exactly what the server says under a name with the template, to the same instruction.
    settings = {"temperature": 0, "max_tokens": TOKENS}
    answer = ask({"model": "ask", "prompt": ASKED, **settings})["text"]
    assert answer
    assert added == f"\n\n{answer}"
    assert answer != ask({"model": MODEL, "prompt": ASKED, **settings})["text"]
    assert sum(chat.tints().values()) == TOKENS
    shows(chat, framed(ASKED, answer))


def test_continue_goes_on_with_the_answer_and_a_new_line_asks_on(chat: Playground) -> None:
    page, bodies = chat.page, sent(chat)
    chat.write(ASKED)
    begun = chat.proceed().removeprefix("\n\n")
    expect(page.locator("#continue-words")).to_have_text("Continue")
    answer = begun + chat.proceed()
    assert bodies[1]["prompt"] == framed(ASKED, begun)
    # Words in the line of an answer are the model's, those on a line of their own are yours.
    page.keyboard.insert_text(" and")
    expect(page.locator("#continue-words")).to_have_text("Continue")
    shows(chat, framed(ASKED, f"{answer} and"))
    page.keyboard.insert_text("\n\nNow twice.")
    expect(page.locator("#continue-words")).to_have_text("Answer")
    prompt = framed(ASKED, f"{answer} and", "Now twice.")
    shows(chat, prompt)
    chat.proceed()
    assert bodies[2]["prompt"] == prompt
    # The caret says how much is sent; the rest stays in its branch.
    whole = chat.text
    caret(chat, len(ASKED))
    shows(chat, framed(ASKED))
    page.keyboard.press("Control+Enter")
    chat.settle()
    assert bodies[3]["prompt"] == framed(ASKED)
    page.keyboard.press("Control+z")
    assert chat.text == whole


def test_versions_of_an_answer_read_the_same_prompt(chat: Playground) -> None:
    page, bodies = chat.page, sent(chat)
    chat.set("temperature", 1.5)
    chat.write(ASKED)
    chat.proceed()
    page.keyboard.press("Alt+r")
    chat.settle()
    page.keyboard.press("Alt+r")
    chat.settle()
    assert [body["prompt"] for body in bodies] == [framed(ASKED)] * 3
    expect(page.locator("#walk-where")).to_contain_text("3")
    caret(chat, len(ASKED))
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator(".choice")).to_have_count(3)
    chat.settle()
    assert (bodies[3]["prompt"], bodies[3]["n"]) == (framed(ASKED), 3)
    page.locator(".choice").nth(1).get_by_role("button").click()
    assert chat.text.startswith(f"{ASKED}\n\n")
    # An alternative begins an answer that the model goes on with.
    caret(chat, len(ASKED) + 3)
    page.keyboard.press("ArrowLeft")
    taken = page.locator("#card button.bar:not([disabled])").first
    token = taken.locator(".bar-token").inner_text().replace("·", " ").replace("↵", "\n")
    taken.click()
    chat.settle()
    assert bodies[4]["prompt"] == framed(ASKED, token)
    assert chat.text.startswith(f"{ASKED}\n\n{token}")


def test_a_score_is_of_the_text_inside_its_template(chat: Playground, ask: Ask) -> None:
    page, bodies = chat.page, sent(chat)
    chat.write(ASKED)
    chat.proceed()
    shown = page.locator("#figures")
    expect(shown).to_contain_text(f"{TOKENS} tokens")
    chat.score()
    prompt = bodies[1]["prompt"]
    assert framed(ASKED) in prompt
    logprobs = ask({"model": MODEL, "prompt": prompt, "max_tokens": 0, "echo": True,
                    "logprobs": 0})["logprobs"]  # fmt: skip
    spans = [(prompt.index(text), prompt.index(text) + len(text))
             for text in (ASKED, chat.text.removeprefix(f"{ASKED}\n\n"))]  # fmt: skip
    inside = [
        value
        for token, value, at in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"], strict=True
        )
        if any(start <= at and at + len(token) <= end for start, end in spans)
    ]
    expect(shown).to_contain_text(f"{len(inside)} tokens")
    expect(shown).to_contain_text(f"log-probability \u2212{-sum(inside):.2f}")
    assert sum(chat.tints().values()) >= len(inside) - 1


def test_a_chat_has_no_gap(schooled: tuple[Playground, Server]) -> None:
    tab, served = schooled
    forget(tab, served.url)
    arrive(tab, served.url)
    page = tab.page
    fills = page.locator("#gap").is_visible()
    assert fills
    tab.write("ab")
    caret(tab, 1)
    page.keyboard.press("Alt+g")
    expect(page.locator("#continue-words")).to_have_text("Fill the gap")
    turn(tab)
    expect(page.locator("#gap")).to_be_hidden()
    expect(page.locator("#gap-start")).to_be_hidden()
    expect(page.locator("#continue-words")).to_have_text("Answer")
    expect(page.locator("#field-infill")).to_be_disabled()
    expect(page.locator("#hint-infill")).to_contain_text("A chat has no place")
    page.click("#field-chat_template")
    expect(page.locator("#gap")).to_be_visible()
    expect(page.locator("#field-infill")).to_be_enabled()
    expect(page.locator(".sent")).to_be_hidden()


def test_names_that_have_the_template_and_models_without_one(blank: Playground) -> None:
    page, bodies = blank.page, sent(blank)
    turn(blank)
    page.select_option("#model", "ask")
    expect(page.locator("#field-chat_template")).to_be_disabled()
    expect(page.locator("#hint-chat_template")).to_contain_text("Under this name the server")
    # The server wraps the whole text, and the page shows it, too.
    blank.write(f"{ASKED}\n")
    shows(blank, framed(f"{ASKED}\n"))
    expect(page.locator("#continue-words")).to_have_text("Continue")
    blank.proceed()
    assert bodies[0]["prompt"] == f"{ASKED}\n"
    page.select_option("#model", "base")
    expect(page.locator("[data-group=chat_template]")).to_be_hidden()
    expect(page.locator("#continue-words")).to_have_text("Continue")
    # The switch stays as the reader left it.
    page.select_option("#model", MODEL)
    expect(page.locator("#field-chat_template")).to_be_checked()
    expect(page.locator("#continue-words")).to_have_text("Continue")


def test_the_switch_is_shared_and_kept(chat: Playground) -> None:
    page = chat.page
    chat.write(ASKED)
    page.click("#share-open")
    expect(page.locator("#share")).to_be_visible()
    body = json.loads(page.inner_text("#share-code").split("-d '")[1].rstrip("'"))
    assert body["prompt"] == framed(ASKED)
    page.click("#share-link")
    expect(page.locator("#share-said")).not_to_be_empty()
    page.click("#share-close")
    page.reload()
    page.wait_for_selector("body[data-ready=true]")
    expect(page.locator("#field-chat_template")).to_be_checked()
    expect(page.locator("#continue-words")).to_have_text("Answer")


def test_refusals_of_the_template_are_at_the_switch(chat: Playground) -> None:
    page = chat.page
    error = {"message": "The template says no.", "type": "invalid_request_error",
             "param": "messages", "code": "invalid_value"}  # fmt: skip

    def refuse(route: Route) -> None:
        route.fulfill(
            status=400, content_type="application/json", body=json.dumps({"error": error})
        )

    page.route("**/apply-template", refuse)
    bodies = sent(chat)
    chat.write(ASKED)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#error-chat_template")).to_have_text("The template says no.")
    chat.settle()
    assert chat.text == ASKED
    assert bodies == []


def test_an_end_at_once_is_said(chat: Playground) -> None:
    page = chat.page
    choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body=f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n",
        ),
    )
    chat.write(ASKED)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#notice")).to_contain_text("The model has ended its answer.")
    chat.settle()
    assert chat.text == ASKED
    turn(chat)
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#notice")).to_contain_text("The model ends the text here.")


def test_the_template_for_axe(chat: Playground) -> None:
    chat.write(ASKED)
    shows(chat, framed(ASKED))
    assert findings(chat.page) == []
