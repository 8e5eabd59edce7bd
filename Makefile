PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help install train test nightly lint check faults format clean
.DEFAULT_GOAL := help

help: ## list these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("error: Python 3.11, 3.12 or 3.13 is needed (got %d.%d); try: make install PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	@touch .venv/.partial
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt --group dev --editable .
	@mv .venv/.partial $@

install: $(READY) ## make .venv with everything in it, once

train: $(READY) ## train on the digits; ARGS="schedule=linear trainer.max_steps=500" overrides
	$(BIN)/python train.py $(ARGS)

test: $(READY) ## run the tests, but for `nightly`; ARGS="-k schedules" selects
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## format check, lint, spelling, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

check: lint ## the same, and the fast tests
	$(BIN)/python -m pytest -m "not slow and not nightly"

nightly: $(READY) ## run what `make test` leaves out: more kills, experiments and tables
	$(BIN)/python -m pytest -m nightly $(ARGS)

faults: $(READY) ## kill, starve and corrupt real runs, for hours; ARGS="kill --count 20" selects
	OMP_NUM_THREADS=1 $(BIN)/python scripts/faults.py $(ARGS)

format: $(READY) ## rewrite the code as `check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and caches, never runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
