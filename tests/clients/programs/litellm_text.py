"""LiteLLM's ``text_completion``: whole, streamed, a batch, log-probabilities; prints JSON."""

import asyncio
import json
import sys

import litellm

url, model, prompt = sys.argv[1:]
to = {"model": f"text-completion-openai/{model}", "api_base": url, "api_key": "unused"}
request = {**to, "max_tokens": 7, "temperature": 0}


async def later():
    stream = await litellm.atext_completion(prompt=prompt, stream=True, **request)
    return [chunk.choices[0].text or "" async for chunk in stream]


chosen = litellm.text_completion(prompt=prompt, n=2, best_of=3, max_tokens=7, seed=5, **to)
whole = litellm.text_completion(prompt=prompt, logprobs=2, **request)
print(
    json.dumps(
        {
            "one": whole.choices[0].text,
            "logprobs": dict(whole.choices[0].logprobs),
            "usage": whole.usage.completion_tokens,
            "batch": [
                choice.text
                for choice in litellm.text_completion(prompt=[prompt, "Once"], **request).choices
            ],
            "stream": [
                chunk.choices[0].text or ""
                for chunk in litellm.text_completion(prompt=prompt, stream=True, **request)
            ],
            "later": asyncio.run(later()),
            "chosen": [choice.text for choice in chosen.choices],
        }
    )
)
