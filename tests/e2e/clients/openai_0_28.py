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
print(
    json.dumps(
        {
            "one": openai.Completion.create(model=model, **request).choices[0].text,
            "engine": openai.Completion.create(engine=model, **request).choices[0].text,
            "stream": [chunk.choices[0].text for chunk in chunks],
            "engines": [entry.id for entry in openai.Model.list().data],
            "refusal": refusal,
        }
    )
)
