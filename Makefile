# The front desk. Every target creates the environment first if need be.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv is the fast installer; it looks for local wheels where pip was told to.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

help:
	@echo "make demo   train on handwritten digits and sample, start to end, on this machine"
	@echo "make test   run the tests"
	@echo "make lint   style, types, floors"
	@echo "make bench  time the training step against the plain reference and the bare convolutions"
	@echo "make types  types alone"
	@echo "make setup  create the environment in $(VENV)"
	@echo "make clean  remove $(VENV), var and build"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python: got $$($(PYTHON) -V), expected CPython 3.11 or newer; install it, or name it with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module: got none, expected it beside $(PYTHON); install it with apt-get install python3-venv." >&2; exit 2; }
	@echo "creating the environment in $(VENV) (half a minute to a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python jobs/demo.py

test: $(STAMP)
	@$(BIN)/python -m pytest

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/pyright

types: $(STAMP)
	@$(BIN)/pyright

bench: $(STAMP)
	@mkdir -p var && $(BIN)/python -m benchmarks.step --json var/bench.json

clean:
	rm -rf $(VENV) var build
