PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.docs

.PHONY: help install train test nightly lint check results docs faults format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("error: Python 3.11, 3.12 or 3.13 is needed (got %d.%d); try: make install PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	@touch .venv/.partial
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt --group dev --editable .
	@mv .venv/.partial $@

install: $(READY) ## create .venv with all packages, once

train: $(READY) ## train on the digits; ARGS="schedule=linear trainer.max_steps=500" overrides
	$(BIN)/python train.py $(ARGS)

test: $(READY) ## run all tests except `nightly`; ARGS="-k schedules" selects
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## format check, lint, spelling, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

check: lint ## lint and the fast tests
	$(BIN)/python -m pytest -m "not slow and not nightly"

nightly: $(READY) ## run the nightly tests: more kills, experiments and tables
	$(BIN)/python -m pytest -m nightly $(ARGS)

results: $(READY) ## compute docs/results, in hours; repeat to resume; ARGS="ddim_table1" selects
	OMP_NUM_THREADS=1 $(BIN)/python scripts/results.py $(ARGS)

$(DOCS_READY): $(READY)
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --group docs
	@touch $@

docs: $(DOCS_READY) ## build the documentation in docs/_build/html and run the tutorials
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

faults: $(READY) ## inject faults into runs, for hours; ARGS="kill --count 20" selects
	OMP_NUM_THREADS=1 $(BIN)/python scripts/faults.py $(ARGS)

format: $(READY) ## format the code as `check` requires
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and caches, but not runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache docs/_build docs/reference/api docs/reference/configs
