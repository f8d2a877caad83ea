"""Classification by log-probabilities: no text is generated, so every answer is a label.

A label that is likely by itself, whatever the review says, is corrected for: its log-probability
after an empty review is subtracted.
"""

from afterword import LLM

EXAMPLES = """\
Review: Great fun, I laughed a lot.
Sentiment: positive

Review: A waste of time.
Sentiment: negative

"""
REVIEWS = [
    "I loved every minute of this film. Wonderful!",
    "A dull story and terrible acting. I want my money back.",
    "The best meal that I have had in years.",
    "The room was dirty and the staff was rude.",
]
LABELS = ["positive", "negative"]


def prompt(review: str) -> str:
    return f"{EXAMPLES}Review: {review}\nSentiment:"


def main() -> None:
    words = [f" {label}" for label in LABELS]
    with LLM("smollm2-135m-instruct") as llm:
        empty = llm.score_continuations(prompt(""), words)
        for review in REVIEWS:
            scores = llm.score_continuations(prompt(review), words)
            gains = [
                score.logprob - base.logprob for score, base in zip(scores, empty, strict=True)
            ]
            best = LABELS[gains.index(max(gains))]
            print(f"{best} {max(gains) - min(gains):5.2f} nats ahead  {review}")


if __name__ == "__main__":
    main()
