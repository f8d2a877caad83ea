"""LlamaIndex's ``OpenAILike`` in completion mode: whole, streamed, asynchronous; prints JSON."""

import asyncio
import json
import sys

from llama_index.llms.openai_like import OpenAILike

url, model, prompt = sys.argv[1:]
llm = OpenAILike(
    api_base=url, api_key="unused", model=model, is_chat_model=False, max_tokens=7, temperature=0
)


async def batch(prompts):
    return [answer.text for answer in await asyncio.gather(*(llm.acomplete(p) for p in prompts))]


scored = OpenAILike(
    api_base=url, api_key="unused", model=model, is_chat_model=False, max_tokens=7, temperature=0,
    additional_kwargs={"logprobs": 2},
).complete(prompt)  # fmt: skip
print(
    json.dumps(
        {
            "one": llm.complete(prompt).text,
            "stream": [part.delta for part in llm.stream_complete(prompt)],
            "batch": asyncio.run(batch([prompt, "Once upon a time"])),
            "logprobs": scored.raw.choices[0].logprobs.model_dump(),
        }
    )
)
