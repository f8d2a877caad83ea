"""Ranking: which passage answers a question? The one after which the question is likeliest.

For many passages, ask from several threads, or with AsyncLLM: the model computes them together.
"""

from afterword import LLM

QUESTION = "At what temperature does water boil?"
PASSAGES = [
    "The Eiffel Tower was completed in 1889 and is 330 metres high.",
    "At sea level water boils at a temperature of 100 degrees Celsius.",
    "Cats sleep for most of the day.",
    "Iron melts at 1,538 degrees Celsius.",
]


def main() -> None:
    contexts = [f"{passage}\n\nQuestion: " for passage in PASSAGES]
    with LLM("smollm2-135m-instruct") as llm:
        found = [
            (llm.score_continuations(context, [QUESTION])[0].logprob, passage)
            for context, passage in zip(contexts, PASSAGES, strict=True)
        ]
    for logprob, passage in sorted(found, reverse=True):
        print(f"{logprob:8.2f}  {passage}")


if __name__ == "__main__":
    main()
