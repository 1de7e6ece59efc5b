# Every target sets up what it needs: a machine with Python >= 3.11, make and a package index is enough.
# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# One thread per process: the tests run in two processes, and results do not depend on the thread count.
TEST_PROCESSES ?= 2
BENCH ?= headline
SOURCES := src tests benchmarks docs

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup train test lint types imports unit cover long bench docs clean

help:
	@echo "make train    train 8 workers in 4 groups on the digits, and report  (ARGS='--seed 1')"
	@echo "make test     lint, types, imports and unit: everything CI checks"
	@echo "make lint     ruff: rules and formatting"
	@echo "make types    mypy"
	@echo "make imports  which room may import which (import-linter)"
	@echo "make unit     the tests, the docstrings' examples and the README's code"
	@echo "make cover    the same, and which lines they run: takes a third longer"
	@echo "make long     tests that take minutes: clusters of several nodes, 100 000 damaged packets"
	@echo "make bench    benchmarks/headline.py, or BENCH=peers and others  (ARGS='…')"
	@echo "make docs     the documentation site, into site/"
	@echo "make setup    .venv with everything the targets above need"
	@echo "make clean    remove build products and caches; .venv and runs/ stay"

setup: $(VENV)/.installed

# The stamps are older than pyproject.toml or constraints.txt exactly when something has to be installed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	$(INSTALL) --editable '.[all]' --group test --group lint
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --group docs
	touch $@

# One thread: the network is so small that a second one only waits. Each run gets a directory of its own under
# runs/; the last lines say where it and its report are.
train: setup
	$(BIN)/hqde train --workers 8 --groups 4 --epochs 12 --set run.threads=1 $(ARGS)

test: lint types imports unit

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

# What needs a Ray of its own comes second, in one process: each such test starts several.
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) -m "not ray and not long" $(COVER) $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "ray and not long" tests/backends tests/cli $(COVER) $(ARGS)

cover:
	rm -f .coverage
	$(MAKE) unit COVER='--cov --cov-append --cov-report=term'

# What takes minutes and is run by hand.
long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long $(ARGS)

bench: setup
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf site build dist htmlcov coverage.xml .coverage .coverage.* .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
