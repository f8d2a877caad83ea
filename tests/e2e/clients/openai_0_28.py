"""OpenAI's client of 2023, by model and by engine (the model in the path); prints JSON."""

import json
import sys

import openai

openai.api_base, model, prompt = sys.argv[1:]
openai.api_key = "unused"
request = {"prompt": prompt, "max_tokens": 7, "temperature": 0}
refusal = None
try:
    openai.Completion.create(model=model, **{**request, "best_of": 1, "n": 2})
except openai.error.InvalidRequestError as error:
    refusal = {"param": error.param, "status": error.http_status}
chunks = openai.Completion.create(model=model, stream=True, **request)
azure = {
    "api_type": "azure",
    "api_base": openai.api_base.removesuffix("/v1"),
    "api_version": "2023-05-15",
}
at_azure = openai.Completion.create(engine=model, **azure, **request)
print(
    json.dumps(
        {
            "one": openai.Completion.create(model=model, **request).choices[0].text,
            "engine": openai.Completion.create(engine=model, **request).choices[0].text,
            "stream": [chunk.choices[0].text for chunk in chunks],
            "azure": at_azure.choices[0].text,
            "models": [entry.id for entry in openai.Model.list().data],
            "engines": [entry.id for entry in openai.Engine.list().data],
            "refusal": refusal,
        }
    )
)
