# `make run` and `make test` set everything up by themselves: Python 3.11+ and git are all they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   ?= workspaces/demo
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help run test test-slow test-all check format bench ui lock clean

help:                ## this text
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):[^#]*##/\1\t/'

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once; about half a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.8"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

run: $(READY)        ## a whole campaign on real images, in workspaces/demo
	@$(BIN)/gleaner demo $(DEMO)

test: $(READY)       ## the tests (minutes)
	$(PYTEST) -m "not slow"

test-slow: $(READY)  ## only the slow tests
	$(PYTEST) -m "slow and not exhaustive"

test-all: test test-slow ## the tests, the slow ones, and those that try every point
	$(PYTEST) -m exhaustive

check: $(READY)      ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)     ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)      ## measure what orchestration and labeling cost beside the bare computation and calls
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.labeling

ui: $(READY)         ## MLflow and Prefect for the demo, on loopback
	@$(BIN)/gleaner ui --workspace $(DEMO)

lock: $(READY)       ## resolve pyproject.toml again into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-annotate --no-header --extra dev pyproject.toml -o requirements.lock

clean:               ## remove the environment and the demo
	rm -rf $(VENV) $(DEMO)
