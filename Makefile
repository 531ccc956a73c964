# One command from a clean checkout to a working environment; the same commands here and in CI.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Small matrices gain nothing from a second thread; two processes with one thread each beat one with two.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo test test-long lint format docs bench clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## make .venv with the locked versions and this package

$(INSTALLED): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --editable .
	touch $@

demo: setup ## the whole method on the embedded model, in under five minutes on two cores
	$(BIN)/securetune demo --out runs/demo

test: setup ## the default tests, in under eight minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup ## the tests of minutes to an hour, such as building tiny world again
	$(BIN)/python -m pytest -m long

lint: setup ## style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## the generated tables of README.md and docs/
	$(BIN)/python docs/generated_tables.py
	$(BIN)/python docs/results_page.py

bench: setup ## speed and memory, each against what one would run instead
	$(BIN)/python -m pytest -m bench
	@for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

clean: ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .hypothesis .ruff_cache .import_linter_cache
