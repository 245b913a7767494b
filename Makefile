# `make train` trains the default recipe, `make test` passes the tests; both set everything up first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test coverage lint format typecheck models report clean

help:            ## what there is
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1|/' | column -t -s '|'

setup: $(READY)  ## create .venv with the pinned versions (constraints.txt)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: $(READY)  ## train the default recipe, or what ARGS names: make train ARGS="model=mixer_digits"
	@$(BIN)/python train.py $(ARGS)

test: lint typecheck ## lint, types and tests
	@$(BIN)/python -m pytest -n 2 $(ARGS)

coverage: $(READY) ## tests with the lines that none of them runs: takes twice as long
	@$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered $(ARGS)

lint: $(READY)   ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

format: $(READY) ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

typecheck: $(READY) ## mypy, strict
	@$(BIN)/mypy

models: $(READY) ## the table of backbones
	@$(BIN)/mixer models

report: $(READY) ## results/ and runs/ beside the papers' numbers, into report/
	@$(BIN)/python -m mixer_lightning report $(ARGS)

clean:           ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* *.egg-info
