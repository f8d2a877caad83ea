"""Inspect's provider of raw completions: an evaluation, token ids, scores; prints JSON.

The model's address is in the environment (``AFTERWORD_BASE_URL``), as for its users.
"""

import asyncio
import json
import sys

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

model, samples, ids = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
name = f"openai-api-completions/afterword/{model}"
(log,) = evaluate(
    Task(
        dataset=MemoryDataset([Sample(input=prompt, target=target) for prompt, target in samples]),
        solver=generate(),
        scorer=includes(),
    ),
    model=name, temperature=0, max_tokens=8, display="none", log_dir="logs",
)  # fmt: skip


async def ask(content, config, metadata=None):
    message = ChatMessageUser(content=content, metadata=metadata)
    return await get_model(name).generate([message], config=config)


scored = asyncio.run(
    ask(
        "",
        GenerateConfig(max_tokens=1, logprobs=True, top_logprobs=3, prompt_logprobs=1),
        {"prompt_token_ids": ids},
    )
)
several = asyncio.run(
    ask(samples[0][0], GenerateConfig(max_tokens=5, temperature=1, seed=3, num_choices=3))
)
choice = scored.choices[0]
print(
    json.dumps(
        {
            "status": log.status,
            "error": str(log.error),
            "texts": [sample.output.completion for sample in log.samples],
            "accuracy": log.results.scores[0].metrics["accuracy"].value,
            "logprobs": [entry.logprob for entry in choice.logprobs.content],
            "top": [len(entry.top_logprobs) for entry in choice.logprobs.content],
            "prompt_logprobs": choice.prompt_logprobs
            and [entry and entry.logprob for entry in choice.prompt_logprobs.content],
            "usage": scored.usage.input_tokens,
            "several": [choice.message.text for choice in several.choices],
        }
    )
)
