"""LangChain's ``OpenAI`` LLM: one prompt, a batch, a stream, log-probabilities; prints JSON."""

import json
import sys

from langchain_openai import OpenAI

url, model, prompt = sys.argv[1:]
llm = OpenAI(base_url=url, api_key="unused", model=model, max_tokens=7, temperature=0)
scored = OpenAI(
    base_url=url, api_key="unused", model=model, max_tokens=7, temperature=0, logprobs=2
).generate([prompt])
chosen = OpenAI(
    base_url=url, api_key="unused", model=model, max_tokens=7, seed=3, n=2, best_of=4
).generate([prompt])
pair = llm.generate([prompt, "Once upon a time"])
print(
    json.dumps(
        {
            "one": llm.invoke(prompt),
            "batch": llm.batch([prompt, "Once upon a time"]),
            "generated": [
                row[0].text for row in llm.generate([prompt, "Once upon a time"]).generations
            ],
            "stream": list(llm.stream(prompt)),
            "logprobs": scored.generations[0][0].generation_info["logprobs"],
            "usage": scored.llm_output["token_usage"],
            "candidates": [generation.text for generation in chosen.generations[0]],
        }
    )
)
