"""DSPy with ``model_type="text"``: a raw call and a signature; prints JSON."""

import json
import sys

import dspy

url, model, prompt = sys.argv[1:]
lm = dspy.LM(
    f"openai/{model}", model_type="text", api_base=url, api_key="unused", temperature=0,
    max_tokens=40, cache=False,
)  # fmt: skip
texts = lm(prompt)
dspy.configure(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))
try:
    said = dspy.Predict("question -> answer")(question="What is the capital of France?").answer
except dspy.utils.exceptions.AdapterParseError as error:
    # What a small model says need not have the fields. What it said counts.
    said = error.lm_response
asked = lm.history[-1]
print(json.dumps({"texts": texts, "said": said, "usage": dict(asked["usage"] or {})}, default=str))
