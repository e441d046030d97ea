# One command each. Everything runs in .venv, made from the hashed lock.

PYTHON ?= python3
BIN := .venv/bin
export PREFECT_HOME ?= $(CURDIR)/.prefect
export DO_NOT_TRACK = 1

.PHONY: demo test test-slow faults scale lint checkov format bench install lock clean

demo: install ## Simulate a trial, run it as a Prefect flow on a local Dask cluster, end with a report
	PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL=WARNING $(BIN)/python -m flows.demo demo

test: install ## Lint, types, import contract, unit tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-slow: install ## Everything, also what takes minutes
	$(BIN)/python -m pytest -m "not benchmark and not hours"

faults: install ## Kills, damage and bad input, in full
	$(BIN)/python -m pytest -m faults

scale: install ## Ten thousand runs through the scheduler: an hour of two cores
	$(BIN)/python -m pytest -m hours

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell kconn flows tests docs deploy README.md CHANGELOG.md CONTRIBUTING.md

checkov: install .venv-checkov/installed ## Security checks of deploy/, in an environment of their own
	$(BIN)/python -m pytest -m slow tests/test_checkov.py

.venv-checkov/installed:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30
	touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## Side by side with the peers; one JSON line each
	$(BIN)/python -m benchmarks

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock: ## Resolve anew: newest versions, hashes, no registry names
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-annotate --no-header --no-strip-extras --extra dev --upgrade pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .venv-checkov .prefect demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
