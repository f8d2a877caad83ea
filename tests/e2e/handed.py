"""A stream whose tokens a test hands to the page, one by one."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Page

# The page's ``fetch`` answers a completion with what the test gives, in the server's frames.
_FETCH = r"""() => {
    const real = window.fetch;
    const encoder = new TextEncoder();
    let sink = null;
    let offsets = [];
    window.hand = (text, index) => {
        const offset = offsets[index] ?? 0;
        offsets[index] = offset + [...text].length;
        const logprobs = {
            tokens: [text], token_logprobs: [-0.5], top_logprobs: [{ [text]: -0.5, x: -1.5 }],
            text_offset: [offset],
        };
        const chunk = { choices: [{ index, text, logprobs, finish_reason: null }] };
        sink.enqueue(encoder.encode(`data: ${JSON.stringify(chunk)}\n\n`));
    };
    window.endHand = () => {
        sink.enqueue(encoder.encode("data: [DONE]\n\n"));
        sink.close();
        sink = null;
    };
    window.isHanding = () => sink !== null;
    window.fetch = async (url, given) => {
        if (url !== "/v1/completions") return real(url, given);
        offsets = [];
        const body = new ReadableStream({ start(controller) { sink = controller; } });
        return new Response(body, { headers: { "content-type": "text/event-stream" } });
    };
}"""
_ASKED = """() => new Promise((done) => {
    const look = () => (window.isHanding() ? done() : requestAnimationFrame(look));
    look();
})"""


@dataclass
class Handed:
    """The stream of the page's running request. ``give`` waits for the request."""

    page: Page

    def give(self, text: str, *, choice: int = 0) -> None:
        """Send one token."""
        self.page.evaluate(_ASKED)
        self.page.evaluate("([text, choice]) => window.hand(text, choice)", [text, choice])

    def end(self) -> None:
        """End the stream."""
        self.page.evaluate("window.endHand()")


def hand_out(page: Page) -> Handed:
    """Answer the page's completions by hand until the page is loaded again."""
    page.evaluate(_FETCH)
    return Handed(page)
