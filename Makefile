# Every target does the set-up it needs, says what it waits for, and is safe to run twice.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
PYTEST := $(PYTHON) -m pytest -q --durations 5
# A file is one worker's, so that its fixtures are made once.
BOTH_CORES := --numprocesses 2 --dist loadfile
CODE := api operator trainer-image cli dev tests benchmarks examples
LOCK = $(VENV)/bin/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 pyproject.toml

# One thread: two threads of torch on busy cores are many times slower, and bits are compared.
export OMP_NUM_THREADS ?= 1
export PYTHONUNBUFFERED = 1

##@ Use

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "; print "usage: make TARGET"} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z%-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(READY) ## Train a LoRA on a local cluster, from nothing to sample pictures (first time 15-25 min, then about 3)
	$(PYTHON) -m dev.demo up

.PHONY: demo-down
demo-down: $(READY) ## Stop everything that the demo started
	$(PYTHON) -m dev.demo down

##@ Cluster (CLUSTER=existing uses the one of KUBECONFIG, see README)

.PHONY: cluster-up cluster-down cluster-status
cluster-up: $(READY) ## Start the local cluster, image registry and S3 store
	$(PYTHON) -m dev.cluster up
cluster-down: $(READY) ## Stop them and leave nothing running
	$(PYTHON) -m dev.cluster down
cluster-status: $(READY) ## Show what runs, since when and where
	$(PYTHON) -m dev.cluster status

.PHONY: images
images: $(READY) ## Build both images and push them to the cluster's registry
	$(PYTHON) -m dev.cluster up
	$(PYTHON) -m dev.images load

##@ Develop

.PHONY: setup
setup: $(READY) ## Make the virtual environment .venv from the hash-locked requirements

$(READY): requirements/dev.txt requirements/setup.txt pyproject.toml
	@echo "setup: installing the locked requirements into $(VENV) (first time about 2 min) ..."
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); python3 -m venv $(VENV); } || { \
	  echo "setup: python3 has no venv module; installing python3-venv ..."; rm -rf $(VENV); \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv && python3 -m venv $(VENV); }
	@$(PYTHON) -m pip install -q --require-hashes -r requirements/setup.txt
	@# uv does not read pip's configuration: a package index set for pip is handed on.
	@index="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(PYTHON) -m pip config get global.index-url 2>/dev/null || true)}}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	$(VENV)/bin/uv pip install -q --python $(PYTHON) --require-hashes -r requirements/dev.txt; \
	$(VENV)/bin/uv pip install -q --python $(PYTHON) --no-deps -e .
	@touch $(READY)

.PHONY: generate
generate: $(READY) ## Write everything that is made from the API's models (CRDs)
	$(PYTHON) -m darkroom_api

.PHONY: lock
lock: $(READY) ## Resolve pyproject.toml anew into requirements/*.txt
	$(LOCK) --extra operator --extra trainer --extra cli --extra dev -o requirements/dev.txt
	$(LOCK) --extra operator -c requirements/dev.txt -o requirements/operator.txt
	$(LOCK) --extra trainer -c requirements/dev.txt -o requirements/trainer.txt

.PHONY: format
format: $(READY) ## Format the code
	$(VENV)/bin/ruff format $(CODE)
	$(VENV)/bin/ruff check --fix $(CODE)

.PHONY: base-model
base-model: $(READY) ## Pretrain the small base model of the examples again (about 75 min of one idle core, resumable)
	$(PYTHON) -m examples.base_model train
	$(PYTHON) -m examples.base_model export

bench-%: $(READY) ## Run benchmarks/PROGRAM.py and print its figures
	$(PYTHON) -m benchmarks.$(subst -,_,$*)

##@ Check

.PHONY: test
test: ## Everything: lint, unit, integration, e2e (cold about 30 min on 2 cores, warm under 15)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-integration
	@$(MAKE) --no-print-directory test-e2e

.PHONY: lint
lint: $(READY) ## ruff, mypy strict, import-linter, generated files fresh
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PYTHON) -m darkroom_api --check

.PHONY: test-unit
test-unit: $(READY) ## Pure functions and small models; needs nothing
	$(PYTEST) $(BOTH_CORES) tests/unit tests/chart tests/gpu

.PHONY: test-integration
test-integration: $(READY) ## Against a real API server, etcd, controller-manager and S3 server (built once, about 10 min)
	$(PYTHON) -m dev.cluster build --control-plane
	$(PYTEST) $(BOTH_CORES) tests/integration

.PHONY: test-e2e
test-e2e: $(READY) ## On a real node with the real images and the chart (root; builds images once, about 8 min)
	$(PYTHON) -m dev.cluster up
	$(PYTHON) -m dev.images load
	$(PYTEST) tests/e2e
