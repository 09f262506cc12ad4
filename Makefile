# Everything here works on a bare machine that has Python 3.10 or newer and make: what is missing is installed first.
#   make quickstart   see it work (about three minutes after installing)
#   make test         the tests, without the slow ones        make test-slow   the slow ones
#   make lint         ruff and mypy                           make bench       the benchmarks
#   make docs         write the generated pages again

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3.10 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
SLOW ?= tests
SITE := .mypy_cache/site

# One thread per process: two workers with all the threads they can get are slower than two with one each.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help install quickstart test test-slow lint format docs bench findings clean

help:
	@sed -n '2,5s/^# *//p' Makefile

install: $(STAMP)

# torch first: where the index has a CPU build beside the CUDA one, the constraint picks a version once and for all.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -W ignore -m pip install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

quickstart: $(STAMP)
	$(BIN)/aligner quickstart --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow $(SLOW)

# mypy checks what ships: it cannot follow the folders that an editable install maps (cli/ is aligner.cli), and run
# from the root it would find the half of the package that lies there.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(SITE) build
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target $(SITE) .
	rm -rf build
	cd $(SITE) && $(abspath $(BIN))/python -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir .. -p aligner

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m aligner.config.docs > docs/recipe.md
	$(BIN)/python docs/write_architecture.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

findings:
	for finding in findings/*.sh; do echo "== $$finding"; bash $$finding || exit 1; done

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache *.egg-info
