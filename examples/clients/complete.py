"""Complete a prompt with the standard library. Run: python3 complete.py."""

import json
import os
import sys
import urllib.error
import urllib.request

base = os.environ.get("AFTERWORD_URL", "http://127.0.0.1:8000/v1")
key = os.environ.get("AFTERWORD_KEY", "unused")
body = {
    "model": os.environ.get("AFTERWORD_MODEL", "smollm2-135m-instruct"),
    "prompt": "Say this is a test",
    "max_tokens": 7,
    "temperature": 0,
}
request = urllib.request.Request(
    f"{base}/completions",
    data=json.dumps(body).encode(),
    headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
)
try:
    with urllib.request.urlopen(request) as answer:
        print(json.load(answer)["choices"][0]["text"])
except urllib.error.HTTPError as refusal:
    sys.exit(refusal.read().decode())
