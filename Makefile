# `make demo` and `make test` set up everything that they need; a second run installs nothing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH := $(VENV)/.bench
# Tests without a cluster share the cores; a file's tests stay in one process.
FAST := $(BIN)/pytest -m "not cluster" --numprocesses logical --maxprocesses 4 --dist loadfile
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: demo stop test test-fast bench lint format clean

demo: $(READY)
	@$(BIN)/raysys submit jobs/recommender.py -- --verbose $(ARGS)

stop: $(READY)
	@$(BIN)/raysys down

test: lint
	@.ci/debian-tools
	$(FAST); fast=$$?; $(BIN)/pytest -m cluster && exit $$fast

test-fast: $(READY)
	$(FAST)

bench: $(BENCH)
	$(BIN)/python -m benchmarks.recommender
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.tune
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.hostile
	$(BIN)/python -m benchmarks.index
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.operations
	$(BIN)/python -m benchmarks.autoscaling
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.scaling

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml requirements.lock $(wildcard raysys/index/native/*)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[jobs,dev]'
	@touch $@

$(BENCH): $(READY)
	$(INSTALL) --editable '.[jobs,dev,bench]'
	@touch $@
