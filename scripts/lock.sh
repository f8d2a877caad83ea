#!/bin/sh
# Compiles requirements/*.in to requirements/*.txt with hashes and without index addresses.
set -eu
cd "$(dirname "$0")/../requirements"
for name in base build compile test plots lm-eval clients openai-0.28; do
    ../.venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --no-annotate --upgrade "$name.in" -o "$name.txt"
done
