#!/bin/sh
# Complete a prompt with curl; python3 reads the answer: sh complete.sh
set -eu
base="${AFTERWORD_URL:-http://127.0.0.1:8000/v1}"
key="${AFTERWORD_KEY:-unused}"
model="${AFTERWORD_MODEL:-smollm2-135m-instruct}"
body="{\"model\": \"$model\", \"prompt\": \"Say this is a test\", \"max_tokens\": 7, \"temperature\": 0}"
answer=$(curl --silent --show-error --fail-with-body "$base/completions" \
    --header "Content-Type: application/json" --header "Authorization: Bearer $key" \
    --data "$body") || {
    echo "$answer" >&2
    exit 1
}
printf '%s' "$answer" | python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["text"])'
