"""Semantic Kernel's ``OpenAITextCompletion``: whole, several, streamed; prints JSON."""

import asyncio
import json
import sys

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import (
    OpenAITextCompletion,
    OpenAITextPromptExecutionSettings,
)

url, model, prompt = sys.argv[1:]


async def main():
    client = AsyncOpenAI(base_url=url, api_key="unused")
    service = OpenAITextCompletion(ai_model_id=model, async_client=client)
    settings = OpenAITextPromptExecutionSettings(max_tokens=7, temperature=0)
    one = await service.get_text_contents(prompt, settings)
    chosen = await service.get_text_contents(
        prompt,
        OpenAITextPromptExecutionSettings(
            max_tokens=7, seed=5, number_of_responses=2, best_of=3, logprobs=2
        ),
    )
    stream = [
        parts[0].text
        async for parts in service.get_streaming_text_contents(
            prompt, OpenAITextPromptExecutionSettings(max_tokens=7, temperature=0)
        )
    ]
    print(
        json.dumps(
            {
                "one": one[0].text,
                "usage": one[0].metadata["usage"].completion_tokens,
                "chosen": [content.text for content in chosen],
                "stream": stream,
            }
        )
    )


asyncio.run(main())
