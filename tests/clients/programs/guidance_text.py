"""guidance's remote completions model: a length, a stop, a regular expression; prints JSON."""

import json
import sys

import tiktoken
from guidance import gen, models

url, prompt, row = sys.argv[1:]
# The server gets text, and guidance parses it by a tokenizer here. OpenAI's would be fetched.
letters = tiktoken.Encoding(
    "bytes", pat_str="(?s:.)", mergeable_ranks={bytes([byte]): byte for byte in range(256)},
    special_tokens={"<|endoftext|>": 256},
)  # fmt: skip
lm = models.OpenAI(
    "gpt-3.5-turbo-instruct", tokenizer=letters, base_url=url, api_key="unused", echo=False,
    max_streaming_tokens=60,
)  # fmt: skip
cut = lm + prompt + gen("text", max_tokens=20, temperature=0)
stopped = lm + prompt + gen("text", stop=".", temperature=0)
number = lm + row + gen("number", regex="[0-9]+", temperature=0)
found = {"cut": cut["text"], "stopped": stopped["text"], "number": number["number"]}
print(json.dumps(found))
