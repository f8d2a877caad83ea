"""Few-shot extraction: examples in the prompt say what is wanted, a stop string where it ends.

The examples are computed once; later prompts find them in the prefix cache.
"""

from afterword import LLM

EXAMPLES = """\
Text: Maria moved from Lisbon to Oslo in 2019.
Person: Maria | City: Oslo | Year: 2019

Text: In 1998 John went to live in Cairo.
Person: John | City: Cairo | Year: 1998

"""
TEXTS = [
    "Anna has lived in Paris since 2004.",
    "Peter left Madrid for Berlin in 2011.",
]


def main() -> None:
    with LLM("smollm2-135m-instruct") as llm:
        for text in TEXTS:
            answer = llm.complete(
                f"{EXAMPLES}Text: {text}\nPerson:", max_tokens=30, temperature=0, stop="\n"
            )
            pairs = f"Person:{answer.text}".split(" | ")
            found = dict(pair.split(": ", 1) for pair in pairs if ": " in pair)
            cached = answer.usage.prompt_tokens_details.cached_tokens
            print(found, f"({cached} of {answer.usage.prompt_tokens} tokens were cached)")


if __name__ == "__main__":
    main()
