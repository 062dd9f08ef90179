# The front desk. Every target creates the environment first if need be.
.DEFAULT_GOAL := help
.PHONY: help setup demo play test test-fast coverage lint types docs wheel bench gpu clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes that share the tests; much of their time is waiting.
TEST_PROCESSES ?= 3
# Of `make gpu`.
MINUTES ?= 9
OUT ?= var/gpu/$(shell date +%Y-%m-%d-%H%M%S)
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES)
# uv is the fast installer; it looks for local wheels where pip was told to.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

help:
	@echo "make demo   train on handwritten digits and sample, start to end, on this machine"
	@echo "make play   open a page to play with the demonstration's model, which is trained first if need be"
	@echo "make test   run all tests, in several processes; one file: $(BIN)/python -m pytest tests/..."
	@echo "make test-fast  run the short tests that start no server, in under two minutes"
	@echo "make coverage   run all tests and report which lines of drl_dist and datasets_prep they ran"
	@echo "make lint   style, types, floors"
	@echo "make docs   build the documentation as a site in var/site, with warnings as errors"
	@echo "make wheel  build the package in var/wheel, and try it away from the checkout"
	@echo "make bench  time the training step against the plain reference and the bare convolutions"
	@echo "make gpu    measure what a GPU gives, in under ten minutes, into a folder of var/gpu"
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
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -C editable_mode=compat -e '.[all,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python jobs/demo.py

play: $(STAMP)
	@test -e var/demo/samples/grid.png || $(BIN)/python jobs/demo.py
	@$(BIN)/python jobs/serve.py --model $(CURDIR)/var/demo/runs/demo --data $(CURDIR)/var/demo/digits --open-page

test: $(STAMP)
	@$(PYTEST)

test-fast: $(STAMP)
	@DRL_FORKED_PYTHON=0 $(PYTEST) -m "not integration and not slow"

coverage: $(STAMP)
	@rm -f var/coverage/data* && mkdir -p var/coverage
	@COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/python -m coverage run -m pytest -n $(TEST_PROCESSES); \
	status=$$?; \
	$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report --skip-covered --show-missing \
	&& exit $$status

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/pyright

types: $(STAMP)
	@$(BIN)/pyright

docs: $(STAMP)
	@$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet --builder html docs var/site
	@echo "var/site/index.html"

wheel: $(STAMP)
	@rm -rf build var/wheel
	@$(BIN)/uv build --quiet --wheel --out-dir var/wheel .
	@rm -rf build
	@$(BIN)/python .ci/wheel.py var/wheel

bench: $(STAMP)
	@mkdir -p var && $(BIN)/python -m benchmarks.step --json var/bench.json

gpu: $(STAMP)
	@$(BIN)/python -m benchmarks.accelerator --minutes $(MINUTES) --out $(OUT)

clean:
	rm -rf $(VENV) var build
