# `make serve` and `make test` install everything that they need.
PORT ?= 8000
ARGS ?=
MODEL ?=
# The first interpreter that is new enough.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
endif
RUN := .venv/bin

.PHONY: help serve install wheel test test-fast test-clients test-gpu check native-check native-test zoo chaos bench bench-plots typing screenshots lock clean
.DEFAULT_GOAL := help

help: ## List all targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

serve: install ## Start the server on PORT (8000), with a MODEL (NAME=SOURCE) and ARGS
	@exec $(RUN)/afterword serve --port $(PORT) $(if $(MODEL),--model $(MODEL)) $(ARGS)

install: python ## Install afterword into .venv, and fetch the embedded model (GPU=vulkan, cuda, metal, hip or none)
	@$(PYTHON) scripts/install.py

wheel: python ## Write the wheel, for all x86-64 processors, into dist/
	@$(PYTHON) scripts/install.py --wheel

test: python ## Install what the tests need, and run them (ARGS)
	@$(PYTHON) scripts/install.py --test
	@$(RUN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: python ## Run the tests that need no browser, database or model: less than a minute
	@$(PYTHON) scripts/install.py --fast
	@$(RUN)/python -m pytest -m "not (browser or database or e2e or model or slow)" --hypothesis-profile fast $(ARGS)

test-clients: python ## Install real clients in versions of their own, and run them (ARGS)
	@$(PYTHON) scripts/install.py --test
	@$(if $(ARGS),,PYTHONPATH=tests $(RUN)/python -m clients.installing)
	@$(RUN)/python -m pytest -rs tests/clients tests/e2e/test_sdks.py tests/e2e/test_frameworks.py \
		tests/e2e/test_lm_eval.py tests/e2e/test_pages.py $(ARGS)

test-gpu: python ## Compile for a GPU (GPU=vulkan), and test that on a card or lavapipe (ARGS)
	@GPU= $(PYTHON) scripts/install.py --test
	@$(RUN)/python scripts/gpu_test.py $(ARGS)

check: python ## Check style, types and import rules
	@$(PYTHON) scripts/install.py --fast
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(RUN)/lint-imports

native-check: python ## Say what of native/ fits a llama-cpp-python (VERSION=, ARGS=--build to compile and test it)
	@$(PYTHON) scripts/install.py --test
	@$(RUN)/python scripts/native_check.py $(VERSION) $(ARGS)

native-test: python ## Test the kernels with sanitizers, by clang, for AVX2 and on ARM (ARGS=name of a build)
	@$(PYTHON) scripts/native_test.py $(ARGS)

zoo: python ## Test every architecture, as a table (ZOO=folder of GGUF files; tiny ones without)
	@$(PYTHON) scripts/install.py --test
	PYTHONPATH=tests $(RUN)/python -m zoo.table $(if $(ZOO),--models $(ZOO)) $(ARGS)
	$(if $(ZOO),,$(RUN)/python -m pytest tests/zoo --law-examples 100)

chaos: python ## Break servers on purpose for MINUTES (60) and check what is promised (ARGS)
	@$(PYTHON) scripts/install.py --test
	PYTHONPATH=tests $(RUN)/python -m chaos.run --minutes $(or $(MINUTES),60) $(ARGS)

bench: python ## Measure against peers (PEERS=folder of llama-server, DATA=folder of choices)
	@$(PYTHON) scripts/install.py --test
	$(RUN)/python benchmarks/run.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)
	$(if $(DATA),$(RUN)/python benchmarks/prefixes.py --data $(DATA))
	$(RUN)/python benchmarks/busy.py $(if $(PEERS),--peers $(PEERS))
	$(if $(PEERS),$(RUN)/python benchmarks/contexts.py --streams --peers $(PEERS))
	$(if $(and $(PEERS),$(DATA)),$(RUN)/python benchmarks/sharing.py --peers $(PEERS) --data $(DATA))

bench-plots: python ## Plot the cost of a step into docs/images (MODELS='--model NAME=FILE ...')
	@$(PYTHON) scripts/install.py --test
	@$(RUN)/uv pip install --quiet --python $(RUN)/python --requirements requirements/plots.txt
	$(RUN)/python benchmarks/plots.py --out docs/images/cost.svg $(MODELS)

typing: python ## Measure the typing latency of the playground by length of the text
	@$(PYTHON) scripts/install.py --test
	$(RUN)/python benchmarks/playground.py

screenshots: python ## Take the pictures of the playground in docs/images
	@$(PYTHON) scripts/install.py --test
	PYTHONPATH=tests $(RUN)/python scripts/screenshots.py

lock: ## Compile requirements/*.in to requirements/*.txt
	scripts/lock.sh

clean: ## Remove .venv and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: python
python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON to its path"; exit 1; }
