# `make demo` and `make test` work on a fresh clone with nothing but Python 3.11 or later: each makes its own environment.
PYTHON ?= python3
VENV ?= .venv
SECONDS ?=
BIN := $(VENV)/bin
# Written last, so that an interrupted installation is done again.
STAMP := $(VENV)/.installed
RUNTIME_STAMP := $(VENV)/.installed-runtime

.PHONY: demo test unit lint types cover search bench bench-scale clean

demo: $(RUNTIME_STAMP)  ## the emulator, some traffic and the real daemon, live; SECONDS=20 ends it by itself
	$(BIN)/poller demo $(if $(SECONDS),--seconds $(SECONDS))

test: lint types cover  ## all that CI runs

unit: $(STAMP)  ## the quick part: no server, no process
	$(BIN)/python -m pytest -n 2 tests/core tests/engine tests/config -m "not slow" -q

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

cover: $(STAMP)  ## the tests, with branch coverage: core and engine 100 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist worksteal --durations=10
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --include='poller/core/*,poller/engine/*' --fail-under=100
	$(BIN)/coverage report --fail-under=90

search: $(STAMP)  ## the laws over examples and courses that no run has seen: as many as you have time for
	POLLER_SIMULATION_SEEDS=12 $(BIN)/python -m pytest -n 2 -m slow --hypothesis-profile=search tests/core tests/engine \
		tests/adapters tests/conformance

bench: $(STAMP)  ## speed against its baselines, in one run; results go to tests/bench/results
	$(BIN)/python -m tests.bench --save
	$(BIN)/python -m tests.bench.invocations

bench-scale: $(STAMP)  ## cost against load, drawn; results go to tests/bench/results
	$(BIN)/python -m tests.bench.scale --save

clean:
	rm -rf $(VENV) .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(RUNTIME_STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "poller needs Python 3.11 or later: make PYTHON=python3.13")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(STAMP): $(RUNTIME_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
