# `make` lists the targets. The environment lives in .venv and is made on first use.
PYTHON ?= python3
# More arguments for pytest, the demo or the benchmarks: make test ARGS="-k verlet"
ARGS ?=
# What `make fuzz` draws of each kind at most, and for how long.
FUZZ_CASES ?= 100000
FUZZ_SECONDS ?= 300

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check -q
STAMP := $(VENV)/.installed

# Two workers, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -q

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-slow fuzz lint format demo bench build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## make .venv, with the pinned dependencies

# The stamp is the last thing written, so an interrupted install is started again. The build backend is
# installed too, pinned like the rest: nothing is fetched for an isolated build, now or in `make build`.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no Python at '$(PYTHON)': set PYTHON to Python 3.10 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1): set PYTHON" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install -c constraints.txt hatchling
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[experiments,sweep,test]"
	@touch $@

test: $(STAMP) ## run the tests, without the slow ones
	$(PYTEST) $(ARGS)

test-slow: $(STAMP) ## run the slow tests alone
	$(PYTEST) -m slow $(ARGS)

fuzz: $(STAMP) ## draw valid and invalid configurations (FUZZ_SECONDS, FUZZ_CASES of each)
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_CASES=$(FUZZ_CASES) OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m fuzz tests/test_fuzz.py $(ARGS)

lint: $(STAMP) ## check style, formatting, types and who imports whom
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## mend what ruff can mend, and format
	$(RUN) -m ruff check --fix-only
	$(RUN) -m ruff format

demo: $(STAMP) ## train on handwritten digits, then swap the integrator of the trained weights
	$(RUN) -m experiments demo $(ARGS)

bench: $(STAMP) ## measure speed and memory
	$(RUN) -m experiments bench $(ARGS)

build: $(STAMP) ## build the wheel into dist/
	$(PIP) wheel --no-deps --no-build-isolation -w dist .

clean: ## remove build outputs and caches; .venv and runs/ stay
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
